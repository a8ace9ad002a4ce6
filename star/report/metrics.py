"""The small metric files that DVC shows: `summary.json` and `curves.csv`."""

import csv
import io
import json

from star.report.comparison import difference, metrics_of, score_of
from star.report.run import Run

CURVE_KEYS = (
    *("epoch", "images", "reward_mean", "reward_std", "held_out", "ratio_mean", "clip_fraction"),
    *("kl", "grad_norm", "map_entropy", "images_per_s"),
)


def summary_json(run: Run) -> str:
    """Return checkpoint -> benchmark -> metric -> mean, low, high: six digits, sorted keys."""
    summary: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    metrics = [metric for metric in metrics_of(None) if metric.task in run.base.benchmarks]
    for checkpoint in run.checkpoints:
        for metric in metrics:
            benchmark = summary.setdefault(checkpoint.name, {}).setdefault(metric.task, {})
            ends = vars(score_of(checkpoint, metric))  # mean, low, high
            benchmark[metric.key] = {name: round(value, 6) for name, value in ends.items()}
    return json.dumps(summary, indent=2, sort_keys=True) + "\n"


def gains(run: Run, resamples: int, seed: int) -> list[str]:
    """Return a line for each training: its own benchmark before and after, the paired gain."""
    lines = []
    for metric in (metric for metric in metrics_of(None) if metric.headline):
        before = score_of(run.base, metric).mean
        for trained in (each for each in run.trained if each.task == metric.task):
            after, gain = (
                score_of(trained, metric).mean,
                difference(trained, run.base, metric, resamples, seed),
            )
            ends = f"{gain.low:+.3f} to {gain.high:+.3f}"
            lines.append(
                f"{trained.name}: {metric.key} {before:.3f} -> {after:.3f}, "
                f"gain {gain.mean:+.3f} ({ends})"
            )
    return lines


def curves_csv(run: Run) -> str:
    """Return one line per training and epoch, from 0 (untrained); what was not logged is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("task", "method", *CURVE_KEYS))
    for training in run.trainings:
        for row in training.log:
            writer.writerow((training.task, training.method, *map(row.get, CURVE_KEYS)))
    return text.getvalue()
