"""Learning curves of the study: each method against the two references, one y axis a task."""

from collections.abc import Mapping

import numpy as np

from star.report.figures import IMAGES_AXIS, Panel
from star.report.svg import Line, line_chart
from star.study.comparison import FLOW_GRPO, SHUFFLED, TaskResult

OWN, REFERENCE, CONTROL = 1, 2, 3  # colours; 0 is the level


def learning_curves(task: TaskResult, names: Mapping[str, str]) -> Panel:
    """Draw the mean over seeds and a band from the least to the greatest seed, a chart a method.

    ``names`` are the tasks'."""
    every = np.concatenate([method.curves.ravel() for method in task.methods])
    limits = float(every.min()), float(every.max())
    level = Line("level", 0, [task.images[0], task.images[-1]], [task.level, task.level])
    shuffled = _line(task, SHUFFLED, CONTROL, band=False)
    charts = []
    for name in (method.name for method in task.methods):
        if name not in (FLOW_GRPO, SHUFFLED):
            lines = [level, shuffled, _line(task, FLOW_GRPO, REFERENCE), _line(task, name, OWN)]
            title = f"{names[task.task]}, {name}: held-out graded score"
            charts.append(line_chart(lines, title, IMAGES_AXIS, name, height=210, y_range=limits))
    legend = (
        ("the method above the chart", OWN),
        (FLOW_GRPO, REFERENCE),
        (SHUFFLED, CONTROL),
        (f"final score of {FLOW_GRPO}", 0),
    )
    return Panel("Learning curves", legend, tuple(charts))


def _line(task: TaskResult, name: str, color: int, band: bool = True) -> Line:
    curves = task.method(name).curves  # (seeds, looks)
    low, high = (curves.min(axis=0), curves.max(axis=0)) if band else ((), ())
    mean = list(curves.mean(axis=0))
    return Line(name, color, list(task.images), mean, low=list(low), high=list(high))
