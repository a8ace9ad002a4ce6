"""Learning curves of the study as small multiples: each method against the two references, on one y
axis a task."""

from collections.abc import Mapping

import numpy as np

from star.report.figures import IMAGES_AXIS, Panel
from star.report.svg import Line, legend, line_chart
from star.study.comparison import FLOW_GRPO, SHUFFLED, TaskResult

OWN, REFERENCE, CONTROL = 1, 2, 3  # colours; 0 is the level


def learning_curves(task: TaskResult, names: Mapping[str, str]) -> Panel:
    """A chart a method: mean over seeds, and a band from the least to the greatest seed; ``names``
    are the tasks'."""
    drawn = [task.method(FLOW_GRPO), task.method(SHUFFLED)]
    every = np.concatenate([method.curves.ravel() for method in task.methods])
    charts = []
    for method in task.methods:
        if method not in drawn:
            lines = [
                Line("level", 0, [task.images[0], task.images[-1]], [task.level, task.level]),
                _line(task, SHUFFLED, CONTROL, band=False),
                _line(task, FLOW_GRPO, REFERENCE),
                _line(task, method.name, OWN),
            ]
            title = f"{names[task.task]}, {method.name}: held-out graded score"
            limits = float(every.min()), float(every.max())
            charts.append(
                line_chart(lines, title, IMAGES_AXIS, method.name, height=210, y_range=limits)
            )
    entries = [("the method above the chart", OWN), (FLOW_GRPO, REFERENCE), (SHUFFLED, CONTROL)]
    return Panel(
        "Learning curves", legend([*entries, (f"final score of {FLOW_GRPO}", 0)]), tuple(charts)
    )


def _line(task: TaskResult, name: str, color: int, band: bool = True) -> Line:
    curves = task.method(name).curves  # (seeds, looks)
    ends = {"low": curves.min(axis=0), "high": curves.max(axis=0)} if band else {}
    return Line(
        name,
        color,
        list(task.images),
        list(curves.mean(axis=0)),
        **{k: list(v) for k, v in ends.items()},
    )
