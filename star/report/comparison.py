"""Checkpoints against base and each other: means, paired differences, winners."""

from dataclasses import dataclass

import numpy as np

from star.evaluation.statistics import Interval, bootstrap_mean
from star.prompts.geneval import TAGS
from star.report.files import checked
from star.report.judges import preference_judge
from star.report.run import EVALUATE_AGAIN, Checkpoint, ImageScore, Run
from star.system.errors import StarError

HEADLINES = {"geneval": "strict", "ocr": "reward", "preference": "score"}


@dataclass(frozen=True)
class Metric:
    """One column of the result table: its key of ``scores.json``, its words, its image values."""

    task: str
    key: str
    label: str
    unit: str
    published: str | None = None  # the paper's, for STAR on SD3.5-M (arXiv 2606.17979)

    @property
    def headline(self) -> bool:
        return self.key == HEADLINES[self.task]

    def value(self, image: ImageScore) -> float:
        return float(image.detail["score" if self.key == "reward" else self.key])


@dataclass(frozen=True)
class Cell:
    """One number of the result table; `difference` is to base, None for base itself."""

    score: Interval
    difference: Interval | None
    trained_on: bool
    best: bool


@dataclass(frozen=True)
class Verdict:
    """The methods trained on one task, best first; `lead`: the best's difference to the second."""

    metric: Metric
    base: Interval
    contenders: dict[str, Cell]  # method -> its cell of the metric
    lead: Interval | None


@dataclass(frozen=True)
class Comparison:
    """Result table and verdicts of a run; `cells` has a row per checkpoint, an entry per metric."""

    metrics: tuple[Metric, ...]
    cells: dict[str, tuple[Cell, ...]]
    verdicts: tuple[Verdict, ...]


def metrics_of(preference: str | None) -> tuple[Metric, ...]:
    """Return the table's columns; ``preference`` is the judge's path, None if it is not known."""
    judge, credit = preference_judge(preference), "partial credit in [0, 1], mean of tags"
    right = "share of images right, mean of tags"
    return (
        Metric("geneval", "strict", "GenEval-style, strict", right, "0.9759"),
        Metric("geneval", "soft", "GenEval-style, soft", credit),
        Metric("ocr", "reward", "OCR reward", "1 \u2212 edit distance / length", "0.9757"),
        Metric("ocr", "exact", "OCR exact", "share of words right"),
        Metric("preference", "score", judge.label, judge.unit, judge.published),
    )


def compare(run: Run, resamples: int, seed: int, preference: str | None = None) -> Comparison:
    """Return all numbers of the report's table, differences paired image by image.

    Args:
        resamples, seed: of the bootstrap.
        preference: `rewards.preference.path`, which names its column; None where it is not known.

    Raises:
        StarError: a score file without the mean and the interval of a benchmark that base has, an
            image without the detail that a benchmark needs, or scores that are not those of the
            images.
    """
    metrics = tuple(m for m in metrics_of(preference) if m.task in run.base.benchmarks)
    scores = {c.name: [_checked_score(c, metric) for metric in metrics] for c in run.checkpoints}
    highest = [max(scores[c.name][k].mean for c in run.checkpoints) for k in range(len(metrics))]

    def cell(checkpoint: Checkpoint, k: int) -> Cell:
        score, metric, gap = scores[checkpoint.name][k], metrics[k], None
        if checkpoint is not run.base:
            gap = difference(checkpoint, run.base, metric, resamples, seed)
        return Cell(score, gap, checkpoint.task == metric.task, score.mean == highest[k])

    cells = {c.name: tuple(cell(c, k) for k in range(len(metrics))) for c in run.checkpoints}
    verdicts = []
    for k, metric in enumerate(metrics):
        own = [checkpoint for checkpoint in run.trained if checkpoint.task == metric.task]
        own.sort(key=lambda checkpoint: -cells[checkpoint.name][k].score.mean)
        if metric.headline and own:
            contenders = {c.method or c.name: cells[c.name][k] for c in own}
            lead = difference(own[0], own[1], metric, resamples, seed) if own[1:] else None
            verdicts.append(Verdict(metric, scores[run.base.name][k], contenders, lead))
    return Comparison(metrics, cells, tuple(verdicts))


def difference(
    checkpoint: Checkpoint, reference: Checkpoint, metric: Metric, resamples: int, seed: int
) -> Interval:
    """Return the paired difference of two checkpoints, a prompt's images resampled together.

    Raises:
        StarError: values that are not finite, or images of one prompt with two tags.
    """
    ours, theirs = (image_values(c, metric) for c in (checkpoint, reference))
    groups, tags = _prompts(reference, metric.task), _tags(reference, metric)
    try:
        return bootstrap_mean(ours - theirs, resamples, seed, groups, tags)
    except ValueError as error:
        raise StarError(
            f"{checkpoint.name}/images.jsonl, {reference.name}/images.jsonl: {metric.task} "
            f"{metric.key}: {error}; evaluate these checkpoints again"
        ) from error


def image_values(checkpoint: Checkpoint, metric: Metric) -> np.ndarray:
    """Return a metric's value of each of its images, in file order: float64 (n,)."""
    where = f"{checkpoint.name}/images.jsonl"
    images = [image for image in checkpoint.images if image.task == metric.task]
    if not images:
        raise StarError(f"{where}: no image of {metric.task}; {EVALUATE_AGAIN}")
    try:
        return np.array([metric.value(image) for image in images], np.float64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StarError(
            f"{where}: an image of {metric.task} has no number for {metric.key} in detail "
            f"({error!r}); {EVALUATE_AGAIN}"
        ) from error


def tag_scores(
    checkpoint: Checkpoint, metric: Metric, resamples: int, seed: int
) -> dict[str, Interval]:
    """Return a GenEval metric's interval by tag, in GenEval's order, for tags that have images."""
    tags, values = _tags(checkpoint, metric), image_values(checkpoint, metric)
    groups = _prompts(checkpoint, metric.task)
    return {
        tag: bootstrap_mean(values[tags == tag], resamples, seed, groups[tags == tag])
        for tag in TAGS
        if tag in tags
    }


def _prompts(checkpoint: Checkpoint, task: str) -> np.ndarray:
    return np.array([image.id for image in checkpoint.images if image.task == task])


def _tags(checkpoint: Checkpoint, metric: Metric) -> np.ndarray:
    """Return what the mean is taken by, first within and then over: a label per image, (n,).

    GenEval's are its tags, as its headline is the mean of its tags' means."""
    images = [image for image in checkpoint.images if image.task == metric.task]
    return np.array([str(i.detail.get("tag")) if i.task == "geneval" else "" for i in images])


def _checked_score(checkpoint: Checkpoint, metric: Metric) -> Interval:
    """Return the mean and interval that evaluation wrote.

    Its mean must be that of the images: differences come from these."""
    value = checkpoint.benchmarks.get(metric.task, {}).get(metric.key)
    where = f"{checkpoint.name}/scores.json: benchmarks.{metric.task}.{metric.key}"
    score = checked(Interval, value, where, EVALUATE_AGAIN)
    values, tags = image_values(checkpoint, metric), _tags(checkpoint, metric)
    mean = float(np.mean([values[tags == tag].mean() for tag in np.unique(tags)]))
    if not abs(mean - score.mean) <= 1e-4 * max(1.0, abs(mean)):  # so that NaN is refused too
        raise StarError(
            f"{where} is {score.mean:.6g}, but its images have {mean:.6g}; {EVALUATE_AGAIN}"
        )
    return score
