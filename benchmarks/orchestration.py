"""Measure what Snakemake itself takes.

    python -m benchmarks.orchestration > benchmarks/figures/orchestration.json

Run it after a `make run` from nothing. It reads Snakemake's log and the rules' own times
(`benchmark:`):

- wall_s: from Snakemake's start to the last line of its log;
- rules_s: what the rules' commands took, added up;
- no_rule_s: wall time in which no job was going on;
- jobs_s: what jobs took beyond their commands (checksums, log lines), added up: an upper bound of
  what it cost.

The log has whole seconds, so `jobs_s` of n jobs is exact to about the root of n / 6.
"""

import csv
import json
import re
from datetime import datetime
from pathlib import Path

LOGS = Path(".snakemake/log")
TIMES = Path("logs")
EVENT = re.compile(
    r"^\[(?P<time>[^]]+)\]\n"
    r"(?:(?:local)?rule \w+:\n(?: {4}.*\n)*? {4}jobid: (?P<started>\d+)"
    r"|Finished jobid: (?P<ended>\d+))",
    re.MULTILINE,
)


def job_intervals(log: str) -> list[tuple[float, float]]:
    """Return start and end of every job of a log that ended, in order of their starts.

    Times are seconds since the epoch.
    """
    starts: dict[str, float] = {}
    intervals = []
    for event in EVENT.finditer(log):
        time = datetime.strptime(event["time"], "%a %b %d %H:%M:%S %Y").timestamp()
        if event["started"]:
            starts[event["started"]] = time
        else:
            intervals.append((starts[event["ended"]], time))
    return sorted(intervals)


def covered(intervals: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals that are sorted by their starts."""
    total, until = 0.0, float("-inf")
    for start, end in intervals:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def main() -> None:
    path = max(LOGS.glob("*.snakemake.log"), key=lambda file: file.stat().st_mtime)
    start = datetime.strptime(
        path.name.partition(".snakemake")[0], "%Y-%m-%dT%H%M%S.%f"
    ).timestamp()
    intervals = job_intervals(path.read_text(encoding="utf-8"))
    rules = 0.0
    for file in TIMES.rglob("*.tsv"):
        if file.stat().st_mtime >= start:
            with open(file, encoding="utf-8", newline="") as stream:
                rules += sum(float(row["s"]) for row in csv.DictReader(stream, delimiter="\t"))
    wall = path.stat().st_mtime - start
    jobs = sum(end - start for start, end in intervals)
    figures = {
        "wall_s": wall,
        "rules_s": rules,
        "no_rule_s": wall - covered(intervals),
        "jobs_s": jobs - rules,
    }
    print(
        json.dumps(
            {"jobs": len(intervals)} | {name: round(value, 1) for name, value in figures.items()},
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
