"""The study's tables in Markdown, from its committed files (docs/study).

Differences are paired by seed, with 95 % t-intervals, bold where zero is outside.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from star.config.reading import load_params
from star.config.references import FIRST
from star.study.curves import COMPARED

FOLDER = Path(__file__).parent / "study"
PARAMS = Path("presets/crowded.yaml")
TASKS = {"ocr": "OCR", "geneval": "GenEval-style"}
WATCHED = {
    "second_reader": "second reader",
    "preference": "preference stand-in",
    "edges": "edges",
    "dark": "dark pixels",
    "diversity": "diversity",
    "unnamed": "unnamed things",
}


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


def scores(task: str, part: str = ".") -> list[str]:
    """Return each method's final score, what it is more than its references', and its images.

    The images are those to a reference's final score, as a share of its own. Where the uniform form
    is `FIRST`, its cells are empty. Another ``part`` of the study is a folder of `FOLDER`.
    """
    rows = []
    for method, row in _rows(task, part).items():
        own = row["uniform"] != FIRST
        rows.append(
            [
                f"`{method}`",
                f"{float(row[COMPARED[task]]):.3f}",
                _cell(row, f"to_{FIRST}"),
                _cell(row, "to_uniform") if own else "",
                _cell(row, "to_control"),
                _share(row, FIRST),
                _share(row, "uniform") if own else "",
            ]
        )
    others = [f"`{FIRST}`", "its uniform form"]
    heads = ["method", "score", *(f"minus {name}" for name in [*others, "its shuffled control"])]
    return table([*heads, *(f"images of {name}" for name in others)], rows)


def rewards(task: str, part: str = ".") -> list[str]:
    """Return each method's mean reward in training, and what it is more than its references'.

    Another algorithm is not compared with `FIRST`: it may draw images with other noise.
    """
    others = {"its uniform form": "uniform", "its control": "control"}
    rows = [
        [f"`{method}`", f"{float(row['reward']):.3f}"]
        + [_cell(row, f"reward_to_{key}") for key in others.values()]
        for method, row in _rows(task, part).items()
    ]
    return table(["method", "reward", *(f"minus {name}" for name in others)], rows)


def finding() -> list[str]:
    """Return the two aims' numbers, each also of other seeds where these ran, for README.

    Aim 1 is of the method without maps alone: the best of all may be a control.
    """
    summary = json.loads((FOLDER / "summary.json").read_text(encoding="utf-8"))
    aim, tasks = summary["aim_2"]["method"], [task for task in TASKS if task in summary["tasks"]]
    uniform = _rows(tasks[0])[aim]["uniform"]
    plain = summary["aim_1"][0]["method"]
    wanted = {
        f"`{plain}`: share of the images of `{FIRST}`": (plain, _share, FIRST),
        f"`{aim}`: share of the images of `{uniform}`": (aim, _share, "uniform"),
        f"`{aim}` minus `{uniform}`": (aim, _cell, "to_uniform"),
    }
    rows = []
    for head, (name, write, key) in wanted.items():
        for first, part in ((head, "."), ("the same, ten other seeds", "again")):
            found = [_rows(task, part).get(name) for task in tasks]
            if any(found):
                rows.append([first, *(write(row, key) if row else "" for row in found)])
    return table(["", *(TASKS[task] for task in tasks)], rows)


def watched(task: str) -> list[str]:
    """Return what else a training changed in the images of a task."""
    found = {
        (row["method"], row["figure"]): row
        for row in read_rows(FOLDER / "watch.csv")
        if row["task"] == task
    }
    figures = [figure for figure in WATCHED if (FIRST, figure) in found]
    base = [f"{float(found[FIRST, figure]['base']):.3f}" for figure in figures]
    rows = [["base model", *base]]
    for method in _rows(task):
        changes = (_cell(found[method, figure], "change") for figure in figures)
        rows.append([f"`{method}`", *changes])
    return table(["change by", *(WATCHED[figure] for figure in figures)], rows)


def _rows(task: str, part: str = ".") -> dict[str, dict[str, str]]:
    """Return the scores of the methods that ran on a task, in the order of the parameters."""
    rows = read_rows(FOLDER / part / "scores.csv")
    found = {row["method"]: row for row in rows if row["task"] == task}
    return {name: found[name] for name in load_params(PARAMS).study.methods if name in found}


def _cell(row: dict[str, str], key: str) -> str:
    """Write a row's difference; empty where it has none."""
    mean, low, high = (row[f"{key}{end}"] for end in ("", "_low", "_high"))
    return signed(float(mean), float(low), float(high)) if mean else ""


def _share(row: dict[str, str], reference: str) -> str:
    """Write the images to a reference's final score as a share of its own; empty without one."""
    if not row[reference]:
        return ""
    mean, low, high = (row[f"ratio_to_{reference}{end}"] for end in ("", "_low", "_high"))
    if not mean:
        return "not reached"
    end = f"{float(high):.2f}" if high else "∞"
    return whole(f"{float(mean):.2f} ({float(low):.2f} to {end})")
