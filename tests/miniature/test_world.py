"""The miniature's worlds: scenes obey their metadata."""

import numpy as np
import pytest

from star.miniature import world
from star.prompts.geneval import COLORS, MINIATURE_CLASSES, TAGS, sample_metadata


def test_the_tables_have_what_prompts_name_in_its_order():
    assert tuple(world.GLYPHS) == world.CLASSES == MINIATURE_CLASSES
    assert tuple(world.PALETTE) == COLORS


@pytest.mark.parametrize("name", world.WORLDS)
@pytest.mark.parametrize("tag", TAGS)
def test_scenes_obey_their_metadata(tag, name):
    rng = np.random.default_rng(0)
    for _ in range(50):
        metadata = sample_metadata(tag, world.CLASSES, rng)
        scene = world.sample_scene(metadata, rng, name)
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


def test_a_crowd_fills_most_of_the_places_that_are_left():
    rng = np.random.default_rng(1)
    things = [{"class": "cat", "count": 1}, {"class": "car", "count": 1}]
    taken, free, filled = set(), 0, 0
    for number in range(400):
        include = things[: 1 + number % 2]
        scene = world.sample_scene({"include": include}, rng, "crowded")
        spots = {(item.x // 32, item.y // 32) for item in (*scene.objects, *scene.unnamed)}
        assert len(spots) == len(scene.objects) + len(scene.unnamed)
        taken.add(tuple((item.x // 32, item.y // 32) for item in scene.objects))
        free, filled = free + 4 - len(include), filled + len(scene.unnamed)
    assert len(taken) == 4 + 8  # any place; both orders in two rows and two columns
    assert filled / free == pytest.approx(world.CROWD, abs=0.04)
    assert not set(world.UNNAMED) & set(world.CLASSES)


def test_every_color_shows_on_the_crowded_ground():
    rng = np.random.default_rng(2)
    grounds = [world.sample_scene({"text": "AB"}, rng, "crowded").ground for _ in range(200)]
    tones = np.array([ground.tones for ground in grounds]).reshape(-1, 1, 3)
    assert np.linalg.norm(tones - list(world.PALETTE.values()), axis=-1).min() > 70
    first, second = grounds[0].tones
    image = world.painted(world.Ground((first, second), 0.0))
    assert tuple(image[5, 0]) == first and tuple(image[9, -1]) == second


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
