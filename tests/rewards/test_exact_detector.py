"""The exact detector: ground truth, noise, closeness, colours, and malformed images."""

import numpy as np
import pytest
from scipy import ndimage

from star.miniature.world import (
    BACKGROUND,
    CLASSES,
    LETTERS,
    PALETTE,
    PLACES,
    UNNAMED,
    WORLDS,
    Scene,
    SceneObject,
    render,
    sample_scene,
    silhouette,
)
from star.prompts.geneval import COLORS, TAGS, sample_metadata
from star.rewards.exact_detector import ExactDetector, color_name
from star.rewards.geneval import judge
from star.system.errors import StarError
from tests.helpers.rewards import geneval_params, noisy

SIZES = sorted({size for _, size, _ in PLACES.values()})
DETECTOR = ExactDetector()


def detect(image):
    return DETECTOR.detect(np.asarray(image, np.uint8)[None])[0]


def best_score(image):
    return max((d.score for d in detect(image)), default=0.0)


def facts(detections):
    return [(d.name, d.color, d.box) for d in detections]


def one(name, color="red", size=36, x=32, y=32):
    return render(Scene(objects=(SceneObject(name, color, x, y, size),)))


def blurred(images, sigma):
    axes = (*(0,) * (images.ndim - 3), sigma, sigma, 0)
    return np.clip(ndimage.gaussian_filter(images.astype(float), axes), 0, 255).astype(np.uint8)


def scenes(tag, count, seed, world="plain"):
    rng = np.random.default_rng(seed)
    lines = [sample_metadata(tag, CLASSES, rng) for _ in range(count)]
    return lines, np.stack([render(sample_scene(metadata, rng, world)) for metadata in lines])


def strict_share(lines, images):
    found = zip(DETECTOR.detect(images), lines, strict=True)
    return np.mean([judge(d, metadata, geneval_params()).strict for d, metadata in found])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_at_every_size(name, size):
    (detection,) = detect(one(name, "blue", size, x=30, y=33))
    assert (detection.name, detection.color) == (name, "blue")
    assert detection.score > 0.95
    height, width = silhouette(name, size).shape
    x0, y0 = 30 - width // 2, 33 - height // 2
    np.testing.assert_allclose(detection.box, (x0, y0, x0 + width, y0 + height), atol=1.01)
    assert detection.mask.shape == (64, 64)
    assert detection.mask.sum() == pytest.approx(silhouette(name, size).sum(), rel=0.12)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("tag", TAGS)
def test_ground_truth_passes_the_strict_rule_also_with_noise(tag, world):
    lines, images = scenes(tag, 40, 11, world)
    assert strict_share(lines, images) >= 0.99
    assert strict_share(lines, noisy(blurred(images, 0.7), 10.0)) >= 0.95


@pytest.mark.parametrize("name", ["car", "couch", "pizza", "clock"])
def test_objects_anywhere_and_two_pixels_apart(name):
    width = silhouette(name, 23).shape[1]
    places = (9 + width // 2, 9 + width // 2 + width + 2)
    objects = tuple(SceneObject(name, "black", x, 40, 23) for x in places)
    found = detect(render(Scene(objects=objects)))
    assert [d.name for d in found if d.score > 0.9] == [name, name]


def test_touching_objects_of_different_colors_keep_their_colors():
    apple, truck = (
        SceneObject("apple", "red", 20, 32, 23),
        SceneObject("truck", "yellow", 42, 32, 23),
    )
    found = detect(render(Scene(objects=(apple, truck))))
    seen = {(d.name, d.color) for d in found if d.score > 0.3}
    assert seen == {("apple", "red"), ("truck", "yellow")}


def test_things_that_nobody_named_are_never_counted():
    pairs = [(name, color) for name in UNNAMED for color in COLORS]
    alone = np.stack([one(*pair, size) for pair in pairs for size in (17, 24)])
    assert not any(d.score > 0.3 for found in DETECTOR.detect(alone) for d in found)
    rng = np.random.default_rng(9)
    crowds = [sample_scene({"text": "AB"}, rng, "crowded").unnamed for _ in range(40)]
    assert not any(d.score > 0.3 for c in crowds for d in detect(render(Scene(unnamed=c))))


def test_empty_images_and_no_images_have_nothing():
    assert detect(np.full((64, 64, 3), BACKGROUND, np.uint8)) == []
    assert detect(np.zeros((64, 64, 3), np.uint8)) == []
    assert DETECTOR.detect(np.zeros((0, 64, 64, 3), np.uint8)) == []


def test_signs_have_nothing_that_counts():
    rng = np.random.default_rng(6)
    words = ["".join(rng.choice(list(LETTERS), size=rng.integers(2, 6))) for _ in range(25)]
    signs = [sample_scene({"text": word}, rng, world) for word in words for world in WORLDS]
    assert max(best_score(render(sign)) for sign in signs) < 0.3


def test_other_image_sizes_are_refused():
    with pytest.raises(StarError, match="64x64"):
        DETECTOR.detect(np.zeros((1, 32, 32, 3), np.uint8))


def test_detections_are_best_first_and_do_not_depend_on_the_batch():
    images = np.concatenate([scenes(tag, 14, 8)[1] for tag in TAGS] + [one("cat")[None] * 0])
    images = noisy(images, 20.0, seed=4)
    order = np.random.default_rng(4).permutation(len(images))  # two chunks of other images
    together, shuffled = DETECTOR.detect(images), DETECTOR.detect(images[order])
    for row, index in enumerate(order):
        scores = [d.score for d in together[index]]
        assert scores == sorted(scores, reverse=True)
        for others in (shuffled[row], detect(images[index])):
            assert facts(others) == facts(together[index])
            assert [d.score for d in others] == pytest.approx(scores, abs=1e-4)
            for first, second in zip(together[index], others, strict=True):
                np.testing.assert_array_equal(first.mask, second.mask)


# ---------------------------------------------------------------- malformed images


def paint(cover, color):
    share, background = np.clip(cover, 0, 1)[..., None], np.asarray(BACKGROUND, float)
    return background + share * (np.asarray(PALETTE[color]) - background)


def test_blobs_are_nothing():
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:64, :64] - 32
    scores = []
    for _ in range(40):
        wobble = ndimage.gaussian_filter(rng.normal(size=(64, 64)), 4)
        wobble *= rng.uniform(0.1, 0.6) / wobble.std()
        blob = np.hypot(y, x) / rng.uniform(10, 18) + wobble < 1
        soft = ndimage.gaussian_filter(blob.astype(float), 0.8)
        scores.append(best_score(paint(soft, str(rng.choice(COLORS)))))
    assert np.mean(np.array(scores) < 0.3) >= 0.9 and max(scores) < 0.9


@pytest.mark.parametrize("half", [np.s_[:, :32], np.s_[:, 32:], np.s_[:32], np.s_[32:]])
def test_halves_are_mostly_nothing(half):
    images = [one(name) for name in CLASSES]
    for image in images:
        image[half] = BACKGROUND
    assert np.mean([best_score(image) < 0.3 for image in images]) >= 0.75


def test_blur_lowers_the_score_smoothly_to_nothing():
    images = np.stack([one(name, "black") for name in CLASSES])
    blurs = np.arange(0, 6.5, 0.5)
    scores = [[best_score(image) for image in blurred(images, blur)] for blur in blurs]
    mean = np.mean(scores, 1)
    assert mean[blurs == 1] > 0.95 and mean[blurs == 6] < 0.1
    assert np.all(np.diff(mean) < 0.02)


def test_a_two_colored_object_keeps_its_name_and_has_no_color():
    image = one("truck", "red")
    image[:32] = one("truck", "blue")[:32]
    (detection,) = detect(image)
    assert (detection.name, detection.color) == ("truck", None)


def test_color_of_pixels():
    for name, value in PALETTE.items():
        assert color_name(noisy(np.tile(value, (40, 1)), 15.0)) == name
    red, blue = np.array(PALETTE["red"]), np.array(PALETTE["blue"])
    assert color_name(np.stack([red] * 7 + [blue] * 3)) == "red"
    assert color_name(np.stack([red] * 5 + [blue] * 5)) is None
    assert color_name(np.full((5, 3), (128, 255, 255))) is None  # cyan is none of the ten
