"""Reads the jobs of a Snakemake dry run."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One job of a dry run."""

    rule: str
    inputs: frozenset[str]
    outputs: frozenset[str]
    wildcards: dict[str, str]
    log: str
    command: str


def parse_jobs(text: str) -> list[Job]:
    """The jobs of `snakemake --dry-run --printshellcmds`."""
    jobs = []
    for block in re.split(r"\n(?=(?:local)?rule \w+:\n)", text)[1:]:
        fields = dict(re.findall(r"^    (input|output|log|wildcards): (.+)$", block, re.M))
        rule = re.match(r"(?:local)?rule (\w+):", block)
        command = re.search(r"^Shell command: (.+)$", block, re.M)
        assert rule
        jobs.append(
            Job(
                rule[1],
                *(
                    frozenset(filter(None, fields.get(key, "").split(", ")))
                    for key in ("input", "output")
                ),
                wildcards=dict(
                    pair.split("=", 1)
                    for pair in filter(None, fields.get("wildcards", "").split(", "))
                ),
                log=fields.get("log", ""),
                command=command[1] if command else "",
            )
        )
    return jobs
