"""Counting things of any shape: rendered scenes of both worlds, also blurred and noisy."""

import numpy as np
import pytest
from scipy import ndimage

from star.miniature.templates import count_things
from star.miniature.world import CLASSES, SIZE, WORLDS, render, sample_scene
from star.prompts.geneval import TAGS, sample_metadata
from tests.helpers.rewards import noisy


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("sign", [False, True])
def test_things_of_both_worlds_are_counted(world, sign):
    rng = np.random.default_rng(3)
    for tag in TAGS * 8:
        metadata = {"text": "STARS"[: rng.integers(2, 6)]}
        if not sign:
            metadata = sample_metadata(tag, CLASSES, rng)
        scene = sample_scene(metadata, rng, world)
        image = render(scene)
        soft = noisy(ndimage.gaussian_filter(image, (0.7, 0.7, 0)), 10.0)
        shown = len(scene.objects) + len(scene.unnamed)
        assert count_things(image, sign) == count_things(soft, sign) == shown


def test_a_blob_is_a_thing_specks_are_none_and_near_parts_are_one():
    image = np.full((SIZE, SIZE, 3), 128, np.uint8)
    image[10:20, 10:20] = (255, 0, 0)
    image[40:43, 40:43] = (255, 0, 0)
    assert count_things(image, False) == 1
    image[10:20, 22:30] = (0, 0, 0)  # two pixels away
    assert count_things(image, False) == 1
    image[22:24, 10:30] = image[10:20, 20:22] = 128
    image[10:20, 24:30], image[10:20, 20:24] = (0, 0, 0), 128
    assert count_things(image, False) == 2
