"""The small metric files that DVC shows: `summary.json` and `curves.csv`."""

import csv
import io
import json

from star.report.comparison import METRICS, score_of
from star.report.run import Run

CURVE_KEYS = (
    "epoch",
    "images",
    "reward_mean",
    "reward_std",
    "ratio_mean",
    "clip_fraction",
    "kl",
    "grad_norm",
    "map_entropy",
    "images_per_s",
)


def summary_json(run: Run) -> str:
    """Checkpoint -> benchmark -> metric -> mean, low, high: rounded to six digits, sorted keys."""
    summary: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for checkpoint in run.checkpoints:
        for metric in METRICS:
            if metric.task in run.base.benchmarks:
                score = score_of(checkpoint, metric)
                values = {key: round(getattr(score, key), 6) for key in ("mean", "low", "high")}
                summary.setdefault(checkpoint.name, {}).setdefault(metric.task, {})[metric.key] = (
                    values
                )
    return json.dumps(summary, indent=2, sort_keys=True) + "\n"


def curves_csv(run: Run) -> str:
    """One line a training and epoch: task, method, then `CURVE_KEYS`; what was not logged is
    empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("task", "method", *CURVE_KEYS))
    for training in run.trainings:
        for row in training.log:
            values = ("" if row.get(key) is None else row[key] for key in CURVE_KEYS)
            writer.writerow((training.task, training.method, *values))
    return text.getvalue()
