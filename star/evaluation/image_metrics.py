"""Figures of images in which a policy that games its reward would show.

``edges`` and ``dark`` are shares of an image's pixels. The diversities compare two images of one
prompt from different noise: ``diversity`` is the mean absolute difference, of 255;
``feature_diversity`` one minus the cosine of their features in the preference model."""

import numpy as np

from star.rewards.preference import PreferenceReward

EDGE = 32.0  # luminance steps (of 255) between neighbours from which a pixel is an edge
DARK = 64.0  # luminance below which a pixel is dark


def image_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return ``edges`` and ``dark`` of images uint8 (n, height, width, 3): float (n,) in [0, 1]."""
    luminance = images @ np.array([0.299, 0.587, 0.114])  # (n, height, width)
    down = np.abs(np.diff(luminance, axis=1))[:, :, 1:]
    right = np.abs(np.diff(luminance, axis=2))[:, 1:]
    return {
        "edges": (np.maximum(down, right) > EDGE).mean((1, 2)),
        "dark": (luminance < DARK).mean((1, 2)),
    }


def pixel_diversity(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return ``diversity`` of image i and other i: float (n,) in [0, 255]."""
    return np.abs(others.astype(float) - images).mean((1, 2, 3))


def feature_diversity(
    judge: PreferenceReward, images: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """Return ``feature_diversity`` of image i and other i: float (n,) in [0, 2]."""
    return 1.0 - (judge.image_features(images) * judge.image_features(others)).sum(1)
