"""Checkpoints against base and against each other: which score of which image, means, paired
differences, winners."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from star.evaluation.statistics import (
    Interval,
    bootstrap_mean,
    paired_difference,
    paired_tag_difference,
)
from star.prompts.geneval import TAGS
from star.report.judges import preference_judge
from star.report.run import Checkpoint, ImageScore, Run
from star.system.errors import StarError


@dataclass(frozen=True)
class Metric:
    """One column of the result table: where its mean stands in ``scores.json``, and its value of
    one image."""

    task: str
    key: str
    label: str
    unit: str
    value: Callable[[ImageScore], float]
    by_tag: bool = False  # the mean of the tags' means, as GenEval's headline
    published: str | None = (
        None  # the figure the paper reports for STAR on SD3.5-M (arXiv 2606.17979)
    )
    headline: bool = False


METRICS = (
    Metric(
        "geneval",
        "strict",
        "GenEval-style, strict",
        "share of images right, mean of tags",
        lambda image: float(image.detail["strict"]),
        by_tag=True,
        published="0.9759",
        headline=True,
    ),
    Metric(
        "geneval",
        "soft",
        "GenEval-style, soft",
        "partial credit in [0, 1], mean of tags",
        lambda image: float(image.detail["soft"]),
        by_tag=True,
    ),
    Metric(
        "ocr",
        "reward",
        "OCR reward",
        "1 \u2212 edit distance / length",
        lambda image: image.detail["score"],
        published="0.9757",
        headline=True,
    ),
    Metric(
        "ocr",
        "exact",
        "OCR exact",
        "share of words right",
        lambda image: float(image.detail["exact"]),
    ),
    Metric(
        "preference",
        "score",
        "Preference",  # `metrics_of` names the judge
        "logit of the model",
        lambda image: image.detail["score"],
        headline=True,
    ),
)


@dataclass(frozen=True)
class Cell:
    """One number of the result table; `difference` is None for base, whose row the others are
    compared with."""

    score: Interval
    difference: Interval | None
    trained_on: bool
    best: bool


@dataclass(frozen=True)
class Contender:
    """One method on the benchmark it was trained for."""

    method: str
    score: Interval
    difference: Interval


@dataclass(frozen=True)
class Verdict:
    """The methods trained on one task, best first; `lead` is the best's paired difference to the
    second."""

    metric: Metric
    base: Interval
    contenders: tuple[Contender, ...]
    lead: Interval | None


@dataclass(frozen=True)
class Comparison:
    """Result table and verdicts of a run; `cells` has one row a checkpoint, one entry a metric."""

    metrics: tuple[Metric, ...]
    cells: dict[str, tuple[Cell, ...]]
    verdicts: tuple[Verdict, ...]


def metrics_of(path: str | None) -> tuple[Metric, ...]:
    """`METRICS`, the preference one with the name of its judge at ``path`` (None: not known)."""
    judge = preference_judge(path)
    return tuple(
        replace(metric, label=judge.label, unit=judge.unit, published=judge.published)
        if metric.task == "preference"
        else metric
        for metric in METRICS
    )


def compare(run: Run, resamples: int, seed: int, preference: str | None = None) -> Comparison:
    """All numbers of the report's table, from the scores and, paired image by image, from the
    images.

    Args:
        preference: `rewards.preference.path`, which names its column; None where it is not known.

    Raises:
        StarError: a score file without the mean and the interval of a benchmark that base has, an
            image without the detail that a benchmark needs, or scores that are not those of the
            images.
    """
    metrics = tuple(
        metric for metric in metrics_of(preference) if metric.task in run.base.benchmarks
    )
    scores = {c.name: [score_of(c, metric) for metric in metrics] for c in run.checkpoints}
    for checkpoint in run.checkpoints:
        for metric, score in zip(metrics, scores[checkpoint.name], strict=True):
            _check_mean(checkpoint, metric, score)
    highest = [max(scores[c.name][k].mean for c in run.checkpoints) for k in range(len(metrics))]
    cells = {}
    for checkpoint in run.checkpoints:
        row = []
        for k, metric in enumerate(metrics):
            gap = (
                None
                if checkpoint is run.base
                else difference(checkpoint, run.base, metric, resamples, seed)
            )
            score = scores[checkpoint.name][k]
            row.append(
                Cell(
                    score,
                    gap,
                    trained_on=checkpoint.task == metric.task,
                    best=score.mean == highest[k],
                )
            )
        cells[checkpoint.name] = tuple(row)
    verdicts = (_verdict(run, metric, resamples, seed) for metric in metrics if metric.headline)
    return Comparison(metrics, cells, tuple(verdict for verdict in verdicts if verdict.contenders))


def score_of(checkpoint: Checkpoint, metric: Metric) -> Interval:
    """Mean and interval that evaluation wrote; `StarError` if they are not there."""
    try:
        values = checkpoint.benchmarks[metric.task][metric.key]
        return Interval(float(values["mean"]), float(values["low"]), float(values["high"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StarError(
            f"{checkpoint.name}/scores.json: no mean, low and high at benchmarks.{metric.task}.{metric.key} "
            f"({error!r}); evaluate this checkpoint again"
        ) from error


def difference(
    checkpoint: Checkpoint, reference: Checkpoint, metric: Metric, resamples: int, seed: int
) -> Interval:
    """Paired difference of a metric between two checkpoints, images of a prompt resampled together.

    Raises:
        StarError: values that are not finite, or images of one prompt with two tags.
    """
    ours, theirs = (image_values(c, metric) for c in (checkpoint, reference))
    images = [image for image in reference.images if image.task == metric.task]
    groups = np.array([image.id for image in images])
    try:
        if metric.by_tag:
            return paired_tag_difference(
                ours, theirs, image_tags(reference), resamples, seed, groups
            )
        return paired_difference(ours, theirs, resamples, seed, groups)
    except ValueError as error:
        raise StarError(
            f"{checkpoint.name}/images.jsonl, {reference.name}/images.jsonl: {metric.task} {metric.key}: {error}; "
            "evaluate these checkpoints again"
        ) from error


def image_values(checkpoint: Checkpoint, metric: Metric) -> np.ndarray:
    """A metric's value of each image of its benchmark, in the order of ``images.jsonl``: float64
    (n,)."""
    images = [image for image in checkpoint.images if image.task == metric.task]
    if not images:
        raise StarError(
            f"{checkpoint.name}/images.jsonl: no image of {metric.task}; evaluate this checkpoint again"
        )
    try:
        return np.array([metric.value(image) for image in images], np.float64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StarError(
            f"{checkpoint.name}/images.jsonl: an image of {metric.task} without the detail for {metric.key} "
            f"({error!r}); evaluate this checkpoint again"
        ) from error


def image_tags(checkpoint: Checkpoint) -> np.ndarray:
    """GenEval tag of each GenEval image: strings (n,)."""
    return np.array(
        [str(image.detail.get("tag")) for image in checkpoint.images if image.task == "geneval"]
    )


def tag_scores(
    checkpoint: Checkpoint, metric: Metric, resamples: int, seed: int
) -> dict[str, Interval]:
    """A GenEval metric's mean and interval per tag, in GenEval's order; tags without images are
    left out."""
    tags, values = image_tags(checkpoint), image_values(checkpoint, metric)
    groups = np.array([image.id for image in checkpoint.images if image.task == "geneval"])
    present = [tag for tag in TAGS if (tags == tag).any()]
    return {
        tag: bootstrap_mean(values[tags == tag], resamples, seed, groups[tags == tag])
        for tag in present
    }


def _verdict(run: Run, metric: Metric, resamples: int, seed: int) -> Verdict:
    own = [checkpoint for checkpoint in run.trained if checkpoint.task == metric.task]
    own.sort(key=lambda checkpoint: -score_of(checkpoint, metric).mean)
    gains = [difference(checkpoint, run.base, metric, resamples, seed) for checkpoint in own]
    contenders = tuple(
        Contender(c.method or c.name, score_of(c, metric), g)
        for c, g in zip(own, gains, strict=True)
    )
    lead = difference(own[0], own[1], metric, resamples, seed) if len(own) > 1 else None
    return Verdict(metric, score_of(run.base, metric), contenders, lead)


def _check_mean(checkpoint: Checkpoint, metric: Metric, score: Interval) -> None:
    """Differences come from the images, means from the scores: they must be of one evaluation and
    one unit."""
    values = image_values(checkpoint, metric)
    tags = image_tags(checkpoint) if metric.by_tag else np.zeros(len(values))
    mean = float(np.mean([values[tags == tag].mean() for tag in np.unique(tags)]))
    if not abs(mean - score.mean) <= 1e-4 * max(1.0, abs(mean)):  # so that NaN is refused too
        raise StarError(
            f"{checkpoint.name}/scores.json: {metric.task}.{metric.key} is {score.mean:.6g}, but the images beside it "
            f"have {mean:.6g}; evaluate this checkpoint again"
        )
