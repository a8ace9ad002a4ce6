"""Learning curves of the study: for each algorithm its methods, and its controls."""

from collections.abc import Mapping, Sequence

import numpy as np

from star.config.references import FIRST
from star.report.figures import IMAGES_AXIS, Panel
from star.report.svg import Line, line_chart
from star.study.comparison import MethodResult, TaskResult
from star.study.curves import COMPARED

OWN_MAPS = ("uniform", "attention")  # sources that are no controls


def learning_curves(task: TaskResult, names: Mapping[str, str]) -> list[Panel]:
    """Draw means over seeds, two panels an algorithm; all have one y axis.

    The first panel has `FIRST` and the algorithm's methods, the second its method without maps and
    its controls. ``names`` are the tasks'."""
    panels, first = [], task.method(FIRST)
    for algorithm in dict.fromkeys(method.algorithm for method in task.methods):
        title = f"{names[task.task]}, {algorithm}"
        own = [method for method in task.methods if method.algorithm == algorithm]
        shown = [method for method in own if method.source in OWN_MAPS]
        controls = [method for method in own if method.source not in OWN_MAPS]
        plain = [method for method in shown if method.source == "uniform"][:1]
        panels.append(_panel(task, title, shown if first in shown else [first, *shown]))
        if controls:
            panels.append(_panel(task, f"{title}, controls", [*plain, *controls]))
    return panels


def _panel(task: TaskResult, title: str, methods: Sequence[MethodResult]) -> Panel:
    every = [score for method in task.methods for score in _mean(method)]
    lines = [Line("level", 0, [task.images[0], task.images[-1]], [task.level, task.level])]
    lines += [
        Line(method.name, color, list(task.images), _mean(method))
        for color, method in enumerate(methods, 1)
    ]
    limits, label = (min(every), max(every)), f"{COMPARED[task.task]} score"
    chart = line_chart(lines, f"{title}: held-out {label}", IMAGES_AXIS, label, y_range=limits)
    legend = [(line.label, line.color) for line in lines[1:]]
    return Panel(title, (*legend, (f"final score of {FIRST}", 0)), (chart,))


def _mean(method: MethodResult) -> list[float]:
    return [float(score) for score in np.mean(method.curves, axis=0)]
