"""Draw the study's learning curves as one image, from its committed table.

python docs/draw_study.py
"""

import csv
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from star.config.params import Params
from star.config.reading import load_params
from star.config.references import FIRST
from star.report.figures import Panel
from star.report.judges import task_names
from star.report.svg import color_class
from star.study.curves import COMPARED
from star.study.figures import learning_curves

FOLDER, PARAMS = Path(__file__).parent / "study", Path("presets/crowded.yaml")
NAMES = task_names(None)  # the study's tasks are geneval and ocr
COLUMNS, WIDTH, GAP = 2, 400, 20  # panels in a row; pixels
CHART, LINE = 282, 18  # heights of a chart, of a line of text


@dataclass(frozen=True)
class Method:
    """A method, and its held-out scores (seeds, looks)."""

    name: str
    algorithm: str
    source: str
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
        return float(self.method(FIRST).curves[:, -1].mean())


def read_task(params: Params, rows: list[dict[str, str]], task: str) -> Task:
    """Return the runs of a task, each method at its rate."""
    rates = {name: params.study.rate(name) for name in params.study.methods}
    mine = [r for r in rows if r["task"] == task and float(r["rate"]) == rates.get(r["method"])]
    images = sorted({int(row["images"]) for row in mine})
    mine.sort(key=lambda row: (int(row["seed"]), int(row["images"])))
    methods = []
    for name in rates:
        curves = [float(row[COMPARED[task]]) for row in mine if row["method"] == name]
        if not curves:  # it did not run on this task
            continue
        changed = params.of_study(name)
        curves = np.reshape(curves, (-1, len(images)))
        source = changed.allocation.source
        methods.append(Method(name, changed.train.algorithm, source, curves))
    return Task(task, methods, images)


def drawn(panel: Panel, x: int, y: int) -> str:
    """Return a panel with its legend, two labels a line, at a place."""
    parts = [f'<text class="title" x="{x}" y="{y + LINE}">{panel.title}</text>']
    for i, (label, color) in enumerate(panel.legend):
        left, middle = x + i % 2 * WIDTH // 2, y + LINE * (2 + i // 2)
        parts.append(f'<path class="line {color_class(color)}" d="M{left} {middle - 5}h24"/>')
        parts.append(f'<text x="{left + 30}" y="{middle}">{label}</text>')
    place = f'<svg x="{x}" y="{y + LINE * 6}" width="{WIDTH}" height="{CHART}" '
    return "".join(parts) + panel.charts[0].replace("<svg ", place, 1)


def main() -> None:
    params = load_params(PARAMS)
    with open(FOLDER / "curves.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    panels = [
        panel
        for task in params.study.tasks
        for panel in learning_curves(read_task(params, rows, task), NAMES)
    ]
    across, down = WIDTH + GAP, LINE * 6 + CHART + GAP
    parts = [
        drawn(panel, GAP + i % COLUMNS * across, GAP + i // COLUMNS * down)
        for i, panel in enumerate(panels)
    ]
    sheets = (("star.report", "page.css"), ("star.study", "page.css"))
    css = "".join(
        resources.files(package).joinpath(name).read_text(encoding="utf-8")
        for package, name in sheets
    )
    css += "svg { font-family: sans-serif; font-size: 13px; "
    css += "fill: var(--ink); background: var(--ground); }"
    css += ".title { font-size: 16px; font-weight: 600; }"
    width, height = GAP + COLUMNS * across, GAP + -(-len(panels) // COLUMNS) * down
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    (FOLDER / "curves.svg").write_text(
        f"{head}<style>{css}</style>{''.join(parts)}</svg>\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
