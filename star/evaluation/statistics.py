"""95 % bootstrap intervals of benchmark scores, and of differences between two checkpoints.

The images of a prompt are not independent, so whole prompts (*groups*) are resampled. GenEval's
headline is the mean of its tags' accuracies, so its resamples are drawn within each tag. Intervals
are percentile intervals (Efron and Tibshirani 1993, chapter 13). They hold what the choice of test
prompts leaves open, not what another training seed would change. Values that never vary (every
image right, say) give an interval of no width."""

from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
Labels = np.ndarray | None  # of each image, shape (n,); without groups every image is its own
_CHUNK_ELEMENTS = 2**20  # resampled indices in memory: 8 MiB


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its 95 % interval, in the unit of the values."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Say whether zero lies outside: for a difference, significance at 5 % (two-sided)."""
        return self.low > 0 or self.high < 0


def bootstrap_mean(
    values: np.ndarray, resamples: int, seed: int, groups: Labels = None, tags: Labels = None
) -> Interval:
    """Return the mean over images and its interval.

    Args:
        values: one finite score per image, shape (n,), or the difference of two checkpoints there:
            pairing takes the prompts' difficulty out of the interval.
        resamples: number of bootstrap resamples, at least 1.
        seed: of the resampling; the same seed gives the same interval to the bit.
        tags: of each image, shape (n,): the mean is that of the means per tag (GenEval's headline,
            arXiv 2310.11513), and resamples are drawn within each tag.

    Raises:
        ValueError: no values, one that is not finite, or a group with images of two tags."""
    values = np.asarray(values, np.float64)
    labels = np.arange(len(values)) if groups is None else groups
    tags = np.zeros(len(values)) if tags is None else tags
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("values must be finite numbers, at least one")
    members = [tags == tag for tag in np.unique(tags)]
    if sum(len(np.unique(labels[member])) for member in members) != len(np.unique(labels)):
        raise ValueError("a group has images of two tags")
    rng = np.random.default_rng(seed)
    means = [_resampled_means(values[m], labels[m], resamples, rng) for m in members]
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.mean(means, axis=0), [tail, 100 - tail])
    return Interval(float(np.mean([values[m].mean() for m in members])), float(low), float(high))


def _resampled_means(
    values: np.ndarray, labels: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the means of ``resamples`` samples of whole groups: shape (resamples,)."""
    _, index = np.unique(labels, return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index)  # (groups,)
    chunk = max(1, _CHUNK_ELEMENTS // len(sums))
    means = []
    for start in range(0, resamples, chunk):
        shape = (min(chunk, resamples - start), len(sums))
        picked = rng.integers(len(sums), size=shape)  # (chunk, groups)
        means.append(sums[picked].sum(axis=1) / counts[picked].sum(axis=1))
    return np.concatenate(means)
