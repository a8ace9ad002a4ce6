"""The small files next to the study's page: `summary.json` and the CSV tables.

Six significant digits, sorted, the same bytes for the same runs. What has no finite value is empty
(CSV) or null (JSON): the images of a method that does not reach a reference's final score, an end
of an interval beyond every bound, a reference that a method does not have."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from star.config.references import FIRST
from star.evaluation.statistics import Interval
from star.study.comparison import (
    ALLOCATION_SHARE,
    FORWARD_SHARE,
    MethodResult,
    Study,
    TaskResult,
    Versus,
)

DIGITS = 6
UNKNOWN = Interval(math.nan, math.nan, math.nan)
SORTED_BY = ("task", "method", "rate", "seed", "epoch", "figure")
Row = dict[str, Any]


def tables(seeds: int, study: Study) -> dict[str, str]:
    """Return file name -> content; ``seeds`` are those of every method."""
    named = [
        ({"task": task.task, "method": method.name}, task, method)
        for task in study.tasks
        for method in task.methods
    ]
    scores = [name | _scores(method) for name, _, method in named]
    watch = [name | row for name, task, m in named for row in _watch(task, m)]
    return {
        "summary.json": summary_json(seeds, study),
        "scores.csv": _csv(scores),
        "curves.csv": curves_csv(study),
        "watch.csv": _csv(watch),
    }


def summary_json(seeds: int, study: Study) -> str:
    """Return the answers for the two aims, and task -> base and each method's numbers.

    Watch figures are in `watch.csv`."""
    aim = study.allocation
    summary = {
        "aim_1": [
            {
                "method": forward.method,
                "needs_at_most_0.5_of_the_images": {
                    task: _answer(versus, FORWARD_SHARE) for task, versus in forward.tasks.items()
                },
                "met": forward.met,
            }
            for forward in study.forward
        ],
        "aim_2": {
            "method": aim.method,
            "tasks": {
                task: {
                    "uniform": versus.name,
                    "needs_at_most_0.7_of_the_images": _answer(versus, ALLOCATION_SHARE),
                    "worse": aim.lost(task),
                    "control": aim.control[task].name,
                    "beats_control": aim.control[task].final.low > 0,
                }
                for task, versus in aim.uniform.items()
            },
            "met": aim.met,
        },
        "tasks": {
            task.task: {
                "base": {
                    "graded": task.base_graded,
                    "exact": task.base_exact,
                    "watch": task.base_watch,
                },
                "held_out_images": task.held_out,
                "seeds": seeds,
                "methods": {method.name: _summary(method) for method in task.methods},
            }
            for task in study.tasks
        },
    }
    return json.dumps(_plain(summary), indent=2, sort_keys=True, allow_nan=False) + "\n"


def _answer(versus: Versus, share: float) -> Row:
    return {"by_the_mean": versus.within(share), "interval_agrees": versus.settled(share)}


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


def _summary(method: MethodResult) -> Row:
    """Return a method's numbers for `summary.json`."""
    against = {key: versus and asdict(versus) for key, versus in _references(method).items()}
    own = {key: getattr(method, key) for key in ("graded", "exact", "area", "reward", "log")}
    return own | {"against": against}


def _scores(method: MethodResult) -> Row:
    """Return a method's numbers for `scores.csv`."""
    row: Row = {key: getattr(method, key) for key in ("graded", "exact", "area", "reward")}
    for key, versus in _references(method).items():
        row |= {
            key: versus and versus.name,
            f"to_{key}": versus.final if versus else UNKNOWN,
            f"area_to_{key}": versus.area if versus else UNKNOWN,
            f"reward_to_{key}": versus.reward if versus else UNKNOWN,
            f"images_to_{key}": versus and versus.images,
            f"ratio_to_{key}": versus.ratio if versus else UNKNOWN,
        }
    return _flat(row)


def _references(method: MethodResult) -> dict[str, Versus | None]:
    return {FIRST: method.first, "uniform": method.uniform, "control": method.control}


def _watch(task: TaskResult, method: MethodResult) -> Iterator[Row]:
    for key, final in method.watch.items():
        row = {"figure": key, "base": task.base_watch[key], "final": final.mean}
        yield row | _flat({"change": method.watch_change[key]})


def _flat(row: Row) -> Row:
    """Make three columns of each interval."""
    flat: Row = {}
    for key, value in row.items():
        if isinstance(value, Interval):
            flat |= {key: value.mean, f"{key}_low": value.low, f"{key}_high": value.high}
        else:
            flat[key] = value
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
