"""What a policy that games its reward would change in pictures, whatever the reward: numbers for every picture.

``preference``: the preference model's score, a judge of pictures that were not trained on it. ``edges``, ``dark``:
shares of pixels. ``diversity``: mean absolute difference, of 255, between two pictures of a prompt from different
noise; ``feature_diversity``: one minus the cosine of their features in the preference model. The OCR benchmark's
pictures have one more figure, ``second_reader``, from `star.second_reader`.
"""

import numpy as np

from star.rewards.preference import PreferenceReward

EDGE = 32.0  # luminance steps (of 255) between neighbours from which a pixel is an edge
DARK = 64.0  # luminance below which a pixel is dark


def picture_statistics(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """``edges`` and ``dark`` of each picture: float (n,) in [0, 1] from uint8 (n, height, width, 3)."""
    luminance = pictures @ np.array([0.299, 0.587, 0.114])  # (n, height, width)
    down, right = np.abs(np.diff(luminance, axis=1))[:, :, 1:], np.abs(np.diff(luminance, axis=2))[:, 1:]
    return {
        "edges": (np.maximum(down, right) > EDGE).mean((1, 2)),
        "dark": (luminance < DARK).mean((1, 2)),
    }


def pixel_diversity(pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """``diversity`` of picture i and other i, of one prompt: float (n,) in [0, 255]."""
    return np.abs(others.astype(float) - pictures).mean((1, 2, 3))


def feature_diversity(judge: PreferenceReward, pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """``feature_diversity`` of picture i and other i, of one prompt: float (n,) in [0, 2]."""
    return 1.0 - (judge.image_features(pictures) * judge.image_features(others)).sum(1)
