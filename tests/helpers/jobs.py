"""Reads the jobs of a Snakemake dry run, and the stages of dvc.yaml."""

import re
from dataclasses import dataclass
from pathlib import Path

from dvc.repo import Repo


@dataclass(frozen=True)
class Job:
    """One job of a dry run."""

    rule: str
    inputs: frozenset[str]
    outputs: frozenset[str]
    wildcards: dict[str, str]
    log: str
    command: str


@dataclass(frozen=True)
class Stage:
    """One resolved stage of dvc.yaml."""

    name: str
    rule: str
    target: str
    inputs: frozenset[str]
    outputs: frozenset[str]
    parameters: frozenset[str]


def parse_jobs(text: str) -> list[Job]:
    """Return the jobs of `snakemake --dry-run --printshellcmds`."""
    jobs = []
    for block in re.split(r"\n(?=(?:local)?rule \w+:\n)", text)[1:]:
        rule = re.match(r"(?:local)?rule (\w+):", block)
        assert rule
        fields = dict(re.findall(r"^    (input|output|log|wildcards): (.+)$", block, re.M))
        command = re.search(r"^Shell command: (.+)$", block, re.M)
        lists = {key: fields[key].split(", ") if key in fields else [] for key in _LISTS}
        jobs.append(
            Job(
                rule=rule[1],
                inputs=frozenset(lists["input"]),
                outputs=frozenset(lists["output"]),
                wildcards=dict(pair.split("=", 1) for pair in lists["wildcards"]),
                log=fields.get("log", ""),
                command=command[1] if command else "",
            )
        )
    return jobs


_LISTS = ("input", "output", "wildcards")


def load_stages(root: Path) -> list[Stage]:
    """Return the stages of a repository's dvc.yaml, templates resolved; code is no input."""
    stages = []
    with Repo(str(root)) as repo:
        for stage in repo.index.stages:
            command = re.fullmatch(r"snakemake .* --allowed-rules (\w+) -- (\S+)", stage.cmd)
            assert command, stage.cmd
            files = [dep.def_path for dep in stage.deps if not hasattr(dep, "params")]
            keys = [key for dep in stage.deps if hasattr(dep, "params") for key in dep.params]
            stages.append(
                Stage(
                    name=stage.addressing.rpartition(":")[2],
                    rule=command[1],
                    target=command[2],
                    inputs=frozenset(f for f in files if not f.startswith(("star/", "workflow/"))),
                    outputs=frozenset(out.def_path for out in stage.outs),
                    parameters=frozenset(keys),
                )
            )
    return stages
