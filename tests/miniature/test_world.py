"""The miniature's world: scenes obey their metadata."""

import numpy as np
import pytest

from star.miniature import world
from star.prompts.geneval import COLORS, MINIATURE_CLASSES, TAGS, sample_metadata


def test_the_tables_have_what_prompts_name_in_its_order():
    assert tuple(world.GLYPHS) == world.CLASSES == MINIATURE_CLASSES
    assert tuple(world.PALETTE) == COLORS


@pytest.mark.parametrize("tag", TAGS)
def test_scenes_obey_their_metadata(tag):
    rng = np.random.default_rng(0)
    for _ in range(50):
        metadata = sample_metadata(tag, world.CLASSES, rng)
        scene = world.sample_scene(metadata, rng)
        assert len(scene.objects) == sum(clause["count"] for clause in metadata["include"])
        for clause in metadata["include"]:
            matching = [o for o in scene.objects if o.name == clause["class"]]
            assert len(matching) == clause["count"]
            assert all(o.color == clause.get("color", o.color) for o in matching)
            if "position" in clause:
                (other,) = (o for o in scene.objects if o.name == metadata["include"][0]["class"])
                dx, dy = matching[0].x - other.x, matching[0].y - other.y
                reach = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
                assert reach[clause["position"][0]] > 20


def test_images_show_palette_on_background():
    scene = world.Scene(objects=(world.SceneObject("apple", "red", 32, 32, 36),))
    image = world.render(scene)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert tuple(image[0, 0]) == world.BACKGROUND
    assert tuple(image[36, 32]) == world.PALETTE["red"]


def test_what_the_world_cannot_draw_is_named():
    rng = np.random.default_rng(0)
    for metadata, told in (
        ({"include": [{"class": "zebra", "count": 1}]}, "zebra"),
        ({"include": [{"class": "cat", "count": 5}]}, "1 to 4 objects"),
        ({"text": "hello"}, "hello"),
    ):
        with pytest.raises(ValueError, match=told):
            world.sample_scene(metadata, rng)
