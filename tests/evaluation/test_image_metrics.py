"""Figures of images in closed form."""

import numpy as np
import pytest

from star.evaluation.image_metrics import feature_diversity, image_statistics, pixel_diversity


def test_edges_and_dark_of_a_half_black_image():
    image = np.zeros((1, 4, 8, 3), np.uint8)
    image[0, :, 4:] = 255
    found = image_statistics(np.concatenate([image, np.full_like(image, 200)]))
    assert found["dark"].tolist() == [0.5, 0.0]
    assert found["edges"].tolist() == [
        pytest.approx(1 / 7),
        0.0,
    ]  # one of seven neighbours to the right


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
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.ones((1, 2, 2, 3), np.uint8)
    assert feature_diversity(Judge(), black, black).tolist() == [0.0]
    assert feature_diversity(Judge(), black, white).tolist() == [1.0]
