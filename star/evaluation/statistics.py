"""95 % bootstrap intervals of benchmark scores, and paired differences between two checkpoints.

The unit that is resampled is the *group* (a prompt): several images of one prompt are not
independent, so they are drawn together. GenEval's headline is the mean of its tags' accuracies, so
its resamples are drawn within each tag (stratified). Intervals are percentile intervals (Efron and
Tibshirani 1993, chapter 13). They hold what the choice of test prompts leaves open; how much
another training seed would change is not in them. Values that never vary (every image right, say)
give an interval of no width: the percentile bootstrap cannot see beyond its sample."""

from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
_CHUNK_ELEMENTS = 2**20  # resampled indices held at once: 8 MiB


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its 95 % interval, in the unit of the values."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval: for a difference, significance at 5 %
        (two-sided)."""
        return self.low > 0 or self.high < 0


def bootstrap_mean(
    values: np.ndarray, resamples: int, seed: int, groups: np.ndarray | None = None
) -> Interval:
    """Mean over images and its interval.

    Args:
        values: one score per image, shape (n,), finite; booleans count as 0 and 1.
        resamples: number of bootstrap resamples, at least 1.
        seed: of the resampling; the same seed gives the same interval to the bit.
        groups: label of each image's prompt, shape (n,); None: every image is its own group.

    Raises:
        ValueError: no values, a value that is not finite, shapes that differ, or no resamples.
    """
    values, labels = _checked(values, resamples, groups)
    draws = _resampled_means(values, labels, resamples, np.random.default_rng(seed))
    return _interval(float(values.mean()), draws)


def bootstrap_tag_mean(
    values: np.ndarray,
    tags: np.ndarray,
    resamples: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> Interval:
    """Mean of the per-tag means (GenEval's headline, arXiv 2310.11513) and its interval, resampled
    within tags.

    ``tags`` is one label per image, shape (n,); the other arguments and errors are those of
    `bootstrap_mean`, and a group that spans two tags is a `ValueError` too."""
    values, labels = _checked(values, resamples, groups)
    tags = np.asarray(tags)
    if tags.shape != values.shape:
        raise ValueError(f"tags of shape {tags.shape} for values of shape {values.shape}")
    rng = np.random.default_rng(seed)
    members = [tags == tag for tag in np.unique(tags)]
    if sum(len(np.unique(labels[member])) for member in members) != len(np.unique(labels)):
        raise ValueError("a group has images of two tags")
    draws = np.mean(
        [_resampled_means(values[m], labels[m], resamples, rng) for m in members], axis=0
    )
    return _interval(float(np.mean([values[m].mean() for m in members])), draws)


def paired_difference(
    values: np.ndarray,
    base_values: np.ndarray,
    resamples: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> Interval:
    """Mean of ``values - base_values`` and its interval; both are in the same order of prompts and
    seeds.

    Pairing takes the prompts' difficulty out of the interval. Arguments and errors are those of
    `bootstrap_mean`."""
    return bootstrap_mean(_differences(values, base_values), resamples, seed, groups)


def paired_tag_difference(
    values: np.ndarray,
    base_values: np.ndarray,
    tags: np.ndarray,
    resamples: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> Interval:
    """`paired_difference` of means over tags; arguments and errors are those of
    `bootstrap_tag_mean`."""
    return bootstrap_tag_mean(_differences(values, base_values), tags, resamples, seed, groups)


def _differences(values: np.ndarray, base_values: np.ndarray) -> np.ndarray:
    values, base_values = np.asarray(values, np.float64), np.asarray(base_values, np.float64)
    if values.shape != base_values.shape:
        raise ValueError(f"pairs need equal shapes, not {values.shape} and {base_values.shape}")
    return values - base_values


def _checked(
    values: np.ndarray, resamples: int, groups: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, np.float64)
    labels = np.arange(len(values)) if groups is None else np.asarray(groups)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError("values must be a non-empty one-dimensional array of finite numbers")
    if labels.shape != values.shape:
        raise ValueError(f"groups of shape {labels.shape} for values of shape {values.shape}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    return values, labels


def _resampled_means(
    values: np.ndarray, labels: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Means of `resamples` samples of whole groups drawn with replacement: shape (resamples,)."""
    _, index = np.unique(labels, return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index)  # (groups,)
    chunk = max(1, _CHUNK_ELEMENTS // len(sums))
    means = []
    for start in range(0, resamples, chunk):
        drawn = rng.integers(
            len(sums), size=(min(chunk, resamples - start), len(sums))
        )  # (chunk, groups)
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)


def _interval(mean: float, draws: np.ndarray) -> Interval:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(mean, float(low), float(high))
