"""95 % intervals over training seeds, and the images that a learning curve takes to a level.

The unit is a seed: these intervals hold what another seed of training would change, and
`star.evaluation.statistics` holds what other prompts would. Means and differences paired by seed
have Student's t-interval; the ratio of two crossings, which may be infinite, has a percentile
bootstrap over seeds."""

import math

import numpy as np
from scipy.special import stdtrit

from star.evaluation.statistics import LEVEL, Interval


def t_quantile(count: int) -> float:
    """Return the half width of a mean's interval, in standard errors; ``count`` is at least 2."""
    return float(stdtrit(count - 1, (1 + LEVEL) / 2))


def t_interval(values: np.ndarray) -> Interval:
    """Return the mean of values (n,), of n seeds, with its t-interval; infinite for one seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf)
    half = t_quantile(len(values)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def first_crossing(curves: np.ndarray, images: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the images at which each curve first reaches its level, shape (n,); inf for never.

    Between looks it interpolates linearly.

    Args:
        curves: scores at the looks, shape (n, looks).
        images: images seen at each look, increasing, shape (looks,).
        levels: one per curve, shape (n,).
    """
    reached = curves >= levels[:, None]  # (n, looks)
    after = np.maximum(reached.argmax(axis=1), 1)  # (n,): first look after the crossing
    rows = np.arange(len(curves))
    low, high = curves[rows, after - 1], curves[rows, after]
    share = np.divide(levels - low, high - low, out=np.zeros(len(curves)), where=high > low)
    crossing = images[after - 1] + share * (images[after] - images[after - 1])
    return np.where(reached[:, 0], images[0], np.where(reached.any(axis=1), crossing, math.inf))


def crossing_ratio(
    curves: np.ndarray, reference: np.ndarray, images: np.ndarray, resamples: int, seed: int
) -> tuple[float, Interval]:
    """Return the images to the reference's mean final score, and their ratio to the reference's.

    The interval resamples seeds jointly for both, (seeds, looks) each, and does everything again:
    mean curves, level, both crossings. A ratio to a reference that starts at its level is 1 or
    infinite."""

    def cross(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # drawn: (n, seeds)
        ours, theirs = curves[drawn].mean(axis=1), reference[drawn].mean(axis=1)  # (n, looks)
        levels = theirs[:, -1]
        return first_crossing(ours, images, levels), first_crossing(theirs, images, levels)

    ours, theirs = cross(np.arange(len(curves))[None])
    draws = np.random.default_rng(seed).integers(len(curves), size=(resamples, len(curves)))
    ratios = np.sort(_ratio(*cross(draws)))
    tail = (1 - LEVEL) / 2
    # Without interpolation between order statistics, which has no answer where they are infinite.
    low, high = ratios[math.floor(tail * resamples)], ratios[math.ceil((1 - tail) * resamples) - 1]
    return float(ours[0]), Interval(float(_ratio(ours, theirs)[0]), float(low), float(high))


def _ratio(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    at_start = np.where(ours == 0, 1.0, math.inf)
    return np.divide(ours, theirs, out=at_start, where=theirs > 0)
