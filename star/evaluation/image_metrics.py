"""What a policy that games its reward would change in images, whatever the reward: numbers for
every image.

``preference``: the preference model's score, a judge of images that were not trained on it.
``edges``, ``dark``: shares of pixels. ``diversity``: mean absolute difference, of 255, between two
images of a prompt from different noise; ``feature_diversity``: one minus the cosine of their
features in the preference model. The OCR benchmark's images have one more figure,
``second_reader``, from `star.evaluation.held_out_reader`."""

import numpy as np

from star.rewards.preference import PreferenceReward

EDGE = 32.0  # luminance steps (of 255) between neighbours from which a pixel is an edge
DARK = 64.0  # luminance below which a pixel is dark


def image_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """``edges`` and ``dark`` of each image: float (n,) in [0, 1] from uint8 (n, height, width,
    3)."""
    luminance = images @ np.array([0.299, 0.587, 0.114])  # (n, height, width)
    down, right = (
        np.abs(np.diff(luminance, axis=1))[:, :, 1:],
        np.abs(np.diff(luminance, axis=2))[:, 1:],
    )
    return {
        "edges": (np.maximum(down, right) > EDGE).mean((1, 2)),
        "dark": (luminance < DARK).mean((1, 2)),
    }


def pixel_diversity(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """``diversity`` of image i and other i, of one prompt: float (n,) in [0, 255]."""
    return np.abs(others.astype(float) - images).mean((1, 2, 3))


def feature_diversity(
    judge: PreferenceReward, images: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """``feature_diversity`` of image i and other i, of one prompt: float (n,) in [0, 2]."""
    return 1.0 - (judge.image_features(images) * judge.image_features(others)).sum(1)
