"""The small files next to the study's page: `summary.json` and the CSV tables.

Six significant digits, sorted, the same bytes for the same runs. What has no finite value is empty
(CSV) or null (JSON): the images of a method that does not reach flow_grpo's final score, an end of
an interval beyond every bound, a method's difference to itself."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from star.config.params import StudyParams
from star.evaluation.statistics import Interval
from star.study.comparison import MethodResult, Study, TaskResult

DIGITS = 6
SORTED_BY = ("task", "method", "rate", "seed", "epoch", "figure")
Row = dict[str, Any]


def tables(settings: StudyParams, study: Study) -> dict[str, str]:
    """Return file name -> content."""
    named = [
        ({"task": task.task, "method": method.name}, task, method)
        for task in study.tasks
        for method in task.methods
    ]
    scores = [name | _flat(_numbers(method)) for name, _, method in named]
    watch = [name | row for name, task, m in named for row in _watch(task, m)]
    return {
        "summary.json": summary_json(settings.seeds, study),
        "scores.csv": _csv(scores),
        "curves.csv": curves_csv(study),
        "watch.csv": _csv(watch),
    }


def summary_json(seeds: int, study: Study) -> str:
    """Return task -> base, level, the aim's answer, and each method's numbers.

    Watch figures are in `watch.csv`."""
    summary = {
        task.task: {
            "base": {
                "graded": task.base_graded,
                "exact": task.base_exact,
                "watch": task.base_watch,
            },
            "flow_grpo_final": task.level,
            "held_out_images": task.held_out,
            "seeds": seeds,
            "answer": {
                "method": task.answer.method,
                "needs_at_most_0.7_of_the_images": task.answer.fewer_images,
                "interval_agrees": task.answer.fewer_images_settled,
                "control": task.answer.control,
                "beats_control": task.answer.beats_control,
                "met": task.answer.met,
            },
            "methods": {
                method.name: _numbers(method) | {"log": method.log} for method in task.methods
            },
        }
        for task in study.tasks
    }
    return json.dumps(_plain(summary), indent=2, sort_keys=True, allow_nan=False) + "\n"


def curves_csv(study: Study) -> str:
    """Return one line per run and look."""
    return _csv(
        [
            {
                "task": run.task,
                "method": run.method,
                "rate": run.rate,
                "seed": run.seed,
                "epoch": curve.epochs[k],
                "images": int(curve.images[k]),
                "graded": curve.graded[k],
                "exact": curve.exact[k],
            }
            for run, curve in study.curves.items()
            for k in range(len(curve.epochs))
        ]
    )


def _numbers(method: MethodResult) -> Row:
    """Return a method's numbers, by their names in the files."""
    return {
        "graded": method.graded,
        "exact": method.exact,
        "to_flow_grpo": method.to_flow_grpo,
        "control": method.control,
        "to_control": method.to_control,
        "images_to_flow_grpo_final": method.images,
        "images_ratio": method.ratio,
        "area": method.area,
        "area_to_flow_grpo": method.area_to_flow_grpo,
    }


def _watch(task: TaskResult, method: MethodResult) -> Iterator[Row]:
    for key, final in method.watch.items():
        row = {"figure": key, "base": task.base_watch[key], "final": final.mean}
        yield row | _flat({"change": method.watch_change[key]})


def _flat(row: Row) -> Row:
    """Make three columns of each interval, empty ones where it is None."""
    flat: Row = {}
    for key, value in row.items():
        flat[key] = value.mean if isinstance(value, Interval) else value
        if value is None or isinstance(value, Interval):
            ends = (value.low, value.high) if value else (None, None)
            flat |= dict(zip((f"{key}_low", f"{key}_high"), ends, strict=True))
    return flat


def _csv(rows: list[Row]) -> str:
    """Return a table sorted by its first columns; all rows have the same ones."""
    keys = [key for key in rows[0] if key in SORTED_BY]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(map(_plain, rows), key=lambda row: [row[key] for key in keys]))
    return text.getvalue()


def _plain(value: Any) -> Any:
    """Round numbers, make dictionaries of intervals and None of what is not finite."""
    if isinstance(value, Interval):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float):  # also NumPy's
        return float(f"{value:.{DIGITS}g}") + 0.0 if math.isfinite(value) else None  # no -0.0
    return value
