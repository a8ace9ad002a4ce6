"""Figures of images in closed form."""

import numpy as np
import pytest

from star.evaluation.image_metrics import feature_diversity, image_statistics, pixel_diversity


def test_edges_and_dark_of_a_half_black_image():
    image = np.zeros((1, 4, 8, 3), np.uint8)
    image[0, :, 4:] = 255
    found = image_statistics(np.concatenate([image, np.full_like(image, 200)]))
    assert found["dark"].tolist() == [0.5, 0.0]
    assert found["edges"].tolist() == pytest.approx([1 / 7, 0.0])  # one of seven neighbours


def test_pixel_diversity_is_the_mean_difference():
    black = np.zeros((2, 4, 4, 3), np.uint8)
    other = black.copy()
    other[1, ..., 0] = 30
    assert pixel_diversity(black, other).tolist() == [0.0, 10.0]


class Judge:
    """Features that point to the image's first or second axis by its first pixel."""

    def image_features(self, images):
        return np.eye(2)[(images[:, 0, 0, 0] > 0).astype(int)]


def test_feature_diversity_is_one_minus_the_cosine():
    images = np.stack([np.full((2, 2, 3), level, np.uint8) for level in (0, 0, 1)])
    assert feature_diversity(Judge(), images[:2], images[1:]).tolist() == [0.0, 1.0]
