"""Draw the study's learning curves as one image, from its committed table.

python docs/draw_study.py
"""

import csv
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from star.report.judges import task_names
from star.report.svg import color_class
from star.study.comparison import FLOW_GRPO
from star.study.figures import CONTROL, OWN, REFERENCE, learning_curves

FOLDER = Path(__file__).parent / "study"
NAMES = task_names(None)  # the study's tasks are geneval and ocr
SHARED_RATE = "0.0015"  # of the committed study
COLUMNS, WIDTH, HEIGHT, GAP = 3, 340, 210, 16  # charts in a row; pixels
LEGEND = {
    "the method named above a chart": OWN,
    "flow_grpo": REFERENCE,
    "shuffled": CONTROL,
    "flow_grpo's end": 0,
}


@dataclass(frozen=True)
class Method:
    """Held-out graded scores of a method, ``curves`` (seeds, looks)."""

    name: str
    curves: np.ndarray


@dataclass(frozen=True)
class Task:
    """What `learning_curves` reads of a task's result."""

    task: str
    methods: list[Method]
    images: list[int]

    def method(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)

    @property
    def level(self) -> float:
        return float(self.method(FLOW_GRPO).curves[:, -1].mean())


def read_task(rows: list[dict[str, str]], task: str) -> Task:
    mine = [row for row in rows if row["task"] == task and row["rate"] == SHARED_RATE]
    images = sorted({int(row["images"]) for row in mine})
    scores: dict[str, list[float]] = {}
    for row in sorted(mine, key=lambda row: (row["method"], int(row["seed"]), int(row["images"]))):
        scores.setdefault(row["method"], []).append(float(row["graded"]))
    methods = [
        Method(name, np.reshape(values, (-1, len(images)))) for name, values in scores.items()
    ]
    return Task(task, methods, images)


def main() -> None:
    with open(FOLDER / "curves.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    width, y, parts = COLUMNS * (WIDTH + GAP) + GAP, GAP + 24, []
    for i, (label, color) in enumerate(LEGEND.items()):
        x = GAP + 270 * i
        parts.append(f'<path class="line {color_class(color)}" d="M{x} 22h24"/>')
        parts.append(f'<text x="{x + 32}" y="27">{label}</text>')
    for task in dict.fromkeys(row["task"] for row in rows):
        parts.append(
            f'<text class="task" x="{GAP}" y="{y + 24}">{NAMES[task]}: held-out graded score</text>'
        )
        y += 40
        for i, chart in enumerate(learning_curves(read_task(rows, task), NAMES).charts):
            x, top = GAP + i % COLUMNS * (WIDTH + GAP), y + i // COLUMNS * (HEIGHT + GAP)
            parts.append(
                chart.replace(
                    "<svg ", f'<svg x="{x}" y="{top}" width="{WIDTH}" height="{HEIGHT}" ', 1
                )
            )
        y = top + HEIGHT + GAP
    sheets = (("star.report", "page.css"), ("star.study", "page.css"))
    css = "".join(
        resources.files(package).joinpath(name).read_text(encoding="utf-8")
        for package, name in sheets
    )
    css += "svg { font-family: sans-serif; font-size: 13px; "
    css += "fill: var(--ink); background: var(--ground); }"
    css += ".task { font-size: 16px; font-weight: 600; }"
    size = f'viewBox="0 0 {width} {y}" width="{width}" height="{y}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    (FOLDER / "curves.svg").write_text(
        f"{head}<style>{css}</style>{''.join(parts)}</svg>\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
