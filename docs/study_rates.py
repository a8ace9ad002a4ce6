"""Compare the study's methods beside its shared learning rate, from the committed curves.

    python docs/study_rates.py

Prints the two tables of docs/study/README.md, of the rates that have several seeds. One has final
graded held-out scores at the other rates, and their differences to `flow_grpo` and to the method's
shuffled control at the same rate. Two has each method at the best of the rates that have as many
seeds as the study. Differences are paired by seed, with 95 % t-intervals, bold where zero is
outside. `best_rates.csv` has the rates of one seed.
"""

import csv
from pathlib import Path

import numpy as np

from star.config.params import StudyParams
from star.config.reading import load_params
from star.study.comparison import FLOW_GRPO, control_of
from star.study.intervals import t_interval

FOLDER = Path(__file__).parent / "study"
TABLES = ("curves.csv", "other_rates.csv")

Seeds = dict[int, float]  # seed -> final graded score
Finals = dict[tuple[str, str, float], Seeds]  # (task, method, rate)


def read_finals() -> Finals:
    """Return the last look of every run; of a run in both tables, the later table's."""
    finals: Finals = {}
    for table in TABLES:
        with open(FOLDER / table, encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):  # a run's looks follow each other
                run = row["task"], row["method"], float(row["rate"])
                finals.setdefault(run, {})[int(row["seed"])] = float(row["graded"])
    return {run: seeds for run, seeds in finals.items() if len(seeds) > 1}


def difference(ours: Seeds, theirs: Seeds | None) -> str:
    """Return a method's difference to another, over the seeds that both have.

    It is empty where there is no other.
    """
    if theirs is None or ours is theirs:
        return ""
    seeds = sorted(ours.keys() & theirs.keys())
    found = t_interval(np.array([ours[seed] - theirs[seed] for seed in seeds]))
    text = f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def mean(seeds: Seeds) -> float:
    return float(np.mean(list(seeds.values())))


def other_rates(study: StudyParams, finals: Finals) -> list[str]:
    """Return the first table's lines."""
    lines = [
        "| task | rate | method | seeds | final | minus `flow_grpo` | minus its shuffled control |",
        "|---|---|---|---|---|---|---|",
    ]
    order = {method: place for place, method in enumerate(study.methods)}
    others = (run for run in finals if run[2] != study.learning_rate)
    for task, method, rate in sorted(others, key=lambda run: (run[0], run[2], order[run[1]])):
        ours, control = finals[task, method, rate], control_of(study.methods, method)
        against = [finals.get((task, FLOW_GRPO, rate)), finals.get((task, control, rate))]
        if method == FLOW_GRPO:
            against = [None, None]
        cells = [difference(ours, theirs) for theirs in against]
        row = [task, f"{rate:g}", f"`{method}`", str(len(ours)), f"{mean(ours):.3f}", *cells]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def best_rates(study: StudyParams, finals: Finals) -> list[str]:
    """Return the second table's lines."""
    lines = [
        "| task | method | rates | best | final | minus `flow_grpo` at its best |",
        "|---|---|---|---|---|---|",
    ]
    for task in sorted(study.tasks):
        rates = {
            method: {
                run[2]: mean(s)
                for run, s in finals.items()
                if run[:2] == (task, method) and len(s) >= study.seeds
            }
            for method in study.methods
        }
        best = {
            method: max(means, key=means.__getitem__)
            for method, means in rates.items()
            if len(means) > 1
        }
        for method, rate in best.items():
            ours, reference = finals[task, method, rate], finals[task, FLOW_GRPO, best[FLOW_GRPO]]
            of = ", ".join(f"{rate:g}" for rate in sorted(rates[method]))
            gain = difference(ours, reference)
            lines.append(f"| {task} | `{method}` | {of} | {rate:g} | {mean(ours):.3f} | {gain} |")
    return lines


def main() -> None:
    study, finals = load_params(Path("params.yaml")).study, read_finals()
    print("\n".join([*other_rates(study, finals), "", *best_rates(study, finals)]))


if __name__ == "__main__":
    main()
