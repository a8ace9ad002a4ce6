"""What a comparison shows, beside the report's own table: images, parameters, figures of the
images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from star.config.differences import MISSING, differences
from star.config.params import TASKS
from star.report.compare.runs import ComparedRun
from star.report.comparison import METRICS, image_values
from star.report.images import Pair
from star.report.page import QUALITY_LABELS

# The metric of each task that has degrees: images that differ most in it are shown.
GRADED = {"geneval": "soft", "ocr": "reward", "preference": "score"}
FIGURES = QUALITY_LABELS | {
    "second_reader": ("second reader", "OCR reward by a reader that took no part in training")
}


@dataclass(frozen=True)
class ParameterRow:
    """One parameter that not all trainings share; a value is JSON, or None for a run that has no
    record of its own."""

    key: str
    values: tuple[str | None, ...]


def tasks_of(runs: Sequence[ComparedRun]) -> list[str]:
    """The benchmarks of the runs, which all have the same."""
    return [task for task in TASKS if task in runs[0].checkpoint.benchmarks]


def judge_of(runs: Sequence[ComparedRun]) -> str | None:
    """`rewards.preference.path` as the trainings on it recorded it; None where none or not one
    did."""
    rewards = [
        run.parameters.get("reward")
        for run in runs
        if run.parameters and run.checkpoint.task == "preference"
    ]
    paths = {reward.get("path") for reward in rewards if isinstance(reward, dict)}
    path = paths.pop() if len(paths) == 1 else None
    return path if isinstance(path, str) else None


def choose_pairs(runs: Sequence[ComparedRun], task: str, count: int) -> list[Pair]:
    """The images whose graded scores lie furthest apart over the runs, at most one a prompt; ties
    by file order."""
    (metric,) = (metric for metric in METRICS if (metric.task, metric.key) == (task, GRADED[task]))
    spread = np.ptp([image_values(run.checkpoint, metric) for run in runs], axis=0)  # (images,)
    images = [[image for image in run.checkpoint.images if image.task == task] for run in runs]
    pairs: dict[str, Pair] = {}
    for k in np.argsort(-spread, kind="stable"):
        pair = Pair(tuple((run.label, own[k]) for run, own in zip(runs, images, strict=True)))
        pairs.setdefault(images[0][k].id, pair)
    return list(pairs.values())[:count]


def differing_parameters(runs: Sequence[ComparedRun]) -> list[ParameterRow]:
    """Dotted keys in which the recorded parameters differ; none of fewer than two records."""
    recorded = [run for run in runs if run.parameters is not None]
    rows = []
    for key, *values in (
        differences(*(run.parameters for run in recorded)) if len(recorded) > 1 else ()
    ):
        texts = {run.label: _as_text(value) for run, value in zip(recorded, values, strict=True)}
        rows.append(ParameterRow(key, tuple(texts.get(run.label) for run in runs)))
    return rows


def without_parameters(runs: Sequence[ComparedRun]) -> list[str]:
    """Labels of the trained runs whose training left no ``parameters.json``."""
    return [run.label for run in runs if run.parameters is None and run.checkpoint.task is not None]


def without_log(runs: Sequence[ComparedRun]) -> list[str]:
    """Labels of the trained runs whose training left no ``log.jsonl``."""
    return [run.label for run in runs if not run.log and run.checkpoint.task is not None]


def figures_of(runs: Sequence[ComparedRun], task: str) -> dict[str, tuple[str, str]]:
    """Figure of a task's images -> its name and what it is, of those that a run has."""
    found = {name for run in runs for name in run.checkpoint.quality.get(task, ())}
    return {name: label for name, label in FIGURES.items() if name in found}


def _as_text(value: Any) -> str:
    return "nothing" if value is MISSING else json.dumps(value, sort_keys=True, ensure_ascii=False)
