"""The study's tables in Markdown, from its committed files (docs/study/*.csv).

Differences are paired by seed, with 95 % t-intervals, bold where zero is outside.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from star.config.params import StudyParams
from star.config.reading import load_params
from star.study.comparison import FLOW_GRPO, control_of
from star.study.intervals import t_interval

FOLDER = Path(__file__).parent / "study"
TASKS = {"ocr": "OCR", "geneval": "GenEval-style"}
SHORT = {"ocr": "OCR", "geneval": "GenEval"}
WATCHED = {
    "second_reader": "second reader",
    "preference": "preference stand-in",
    "edges": "edges",
    "dark": "dark pixels",
    "diversity": "diversity",
}

Seeds = dict[int, float]  # seed -> final graded score
Finals = dict[tuple[str, str, float], Seeds]  # (task, method, rate)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def whole(text: str) -> str:
    """Write figures with minus signs, and so that no line breaks in them."""
    return text.replace("-", "\N{MINUS SIGN}").replace(" ", "\N{NO-BREAK SPACE}")


def signed(mean: float, low: float, high: float) -> str:
    """Write a difference and its interval, bold where zero is outside."""
    text = whole(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})")
    return f"**{text}**" if low > 0 or high < 0 else text


# ------------------------------------------------------------------------- at the shared rate


def scores(task: str) -> list[str]:
    """Return each method's final score, its differences to its references, and its images.

    The images are those to flow_grpo's final score, as a share of flow_grpo's own.
    """
    found = {row["method"]: row for row in read_rows(FOLDER / "scores.csv") if row["task"] == task}
    rows = []
    for method in _study().methods:
        row, own = found[method], method == FLOW_GRPO
        to_control, share = ("", "") if own else (_cell(row, "to_control"), _share(row))
        score = f"{float(row['graded']):.3f}"
        rows.append([f"`{method}`", score, _cell(row, "to_flow_grpo"), to_control, share])
    heads = ["method", "score", "minus `flow_grpo`", "minus its control", "images"]
    return table(heads, rows)


def finding() -> list[str]:
    """Return the differences of `star` alone, for README."""
    found = {
        row["task"]: row for row in read_rows(FOLDER / "scores.csv") if row["method"] == "star"
    }
    against = {"to_flow_grpo": "`flow_grpo`", "to_control": "`star` with its maps shuffled"}
    rows = [[name, *(_cell(found[task], key) for task in TASKS)] for key, name in against.items()]
    return table(["`star` minus", *TASKS.values()], rows)


def watched(task: str) -> list[str]:
    """Return what else a training changed in the images of a task."""
    found = {
        (row["method"], row["figure"]): row
        for row in read_rows(FOLDER / "watch.csv")
        if row["task"] == task
    }
    figures = [figure for figure in WATCHED if (FLOW_GRPO, figure) in found]
    base = [f"{float(found[FLOW_GRPO, figure]['base']):.3f}" for figure in figures]
    rows = [["base model", *base]]
    for method in _study().methods:
        changes = (_cell(found[method, figure], "change") for figure in figures)
        rows.append([f"`{method}`", *changes])
    return table(["change by", *(WATCHED[figure] for figure in figures)], rows)


# ------------------------------------------------------------------------- at other rates


def read_finals() -> Finals:
    """Return the last look of every run; of a run in both tables, the later table's.

    `best_rates.csv` has the rates of one seed; they are left out.
    """
    finals: Finals = {}
    for name in ("curves.csv", "other_rates.csv"):
        for row in read_rows(FOLDER / name):  # a run's looks follow each other
            run = row["task"], row["method"], float(row["rate"])
            finals.setdefault(run, {})[int(row["seed"])] = float(row["graded"])
    return {run: seeds for run, seeds in finals.items() if len(seeds) > 1}


def other_rates() -> list[str]:
    """Return final scores at rates beside the shared one, compared at the same rate."""
    study, finals = _study(), read_finals()
    heads = ["task", "rate", "method", "seeds", "final"]
    heads += ["minus `flow_grpo`", "minus its control"]
    order = {method: place for place, method in enumerate(study.methods)}
    others = (run for run in finals if run[2] != study.learning_rate)
    rows = []
    for task, method, rate in sorted(others, key=lambda run: (run[0], run[2], order[run[1]])):
        ours, control = finals[task, method, rate], control_of(study.methods, method)
        against = [finals.get((task, FLOW_GRPO, rate)), finals.get((task, control, rate))]
        if method == FLOW_GRPO:
            against = [None, None]
        cells = [_difference(ours, theirs) for theirs in against]
        first = [SHORT[task], f"{rate:g}", f"`{method}`", str(len(ours)), f"{_mean(ours):.3f}"]
        rows.append([*first, *cells])
    return table(heads, rows)


def best_rates() -> list[str]:
    """Return each method at the best of the rates that have as many seeds as the study."""
    study, finals = _study(), read_finals()
    rows = []
    for task in sorted(study.tasks):
        rates = {
            method: {
                run[2]: _mean(s)
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
            gain = _difference(ours, reference)
            rows.append([SHORT[task], f"`{method}`", of, f"{rate:g}", f"{_mean(ours):.3f}", gain])
    return table(
        ["task", "method", "rates", "best", "final", "minus `flow_grpo` at its best"], rows
    )


def _study() -> StudyParams:
    return load_params(Path("params.yaml")).study


def _mean(seeds: Seeds) -> float:
    return float(np.mean(list(seeds.values())))


def _difference(ours: Seeds, theirs: Seeds | None) -> str:
    """Write a method's difference to another, over the seeds that both have; empty without one."""
    if theirs is None or ours is theirs:
        return ""
    seeds = sorted(ours.keys() & theirs.keys())
    found = t_interval(np.array([ours[seed] - theirs[seed] for seed in seeds]))
    return signed(found.mean, found.low, found.high)


def _cell(row: dict[str, str], key: str) -> str:
    """Write a row's difference; empty where it has none."""
    mean, low, high = (row[f"{key}{end}"] for end in ("", "_low", "_high"))
    return signed(float(mean), float(low), float(high)) if mean else ""


def _share(row: dict[str, str]) -> str:
    """Write a share of flow_grpo's images; empty where its final score is not reached."""
    mean, low, high = (row[f"images_ratio{end}"] for end in ("", "_low", "_high"))
    if not mean:
        return "not reached"
    end = f"{float(high):.2f}" if high else "∞"
    return whole(f"{float(mean):.2f} ({float(low):.2f} to {end})")
