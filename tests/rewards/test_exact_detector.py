"""The exact detector: ground truth, noise, closeness, colours, and what it does with malformed
images."""

import numpy as np
import pytest
from scipy import ndimage

from star.config.params import GenevalParams
from star.miniature.templates import coverage, full_templates, soft_iou
from star.miniature.world import (
    BACKGROUND,
    CLASSES,
    LETTERS,
    PALETTE,
    PLACES,
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

PARAMS = GenevalParams(
    detector="exact",
    path=None,
    revision=None,
    color_path=None,
    color_revision=None,
    batch=8,
    soft="clamped",
    score_threshold=0.3,
    counting_threshold=0.9,
    max_per_class=16,
)
SIZES = sorted({size for _, size, _ in PLACES.values()})
DETECTOR = ExactDetector()


def detect(image):
    return DETECTOR.detect(np.asarray(image, np.uint8)[None])[0]


def one(name, color="red", size=36, x=32, y=32):
    return render(Scene(objects=(SceneObject(name, color, x, y, size),)))


def noisy(image, rng, sigma=10.0, blur=0.7):
    soft = ndimage.gaussian_filter(image.astype(float), (blur, blur, 0))
    return np.clip(soft + rng.normal(scale=sigma, size=soft.shape), 0, 255).astype(np.uint8)


def scenes(tag, count, seed):
    rng = np.random.default_rng(seed)
    lines = [sample_metadata(tag, CLASSES, rng) for _ in range(count)]
    return lines, [sample_scene(metadata, rng) for metadata in lines]


def strict_share(lines, images):
    found = DETECTOR.detect(np.stack(images))
    return np.mean(
        [judge(d, metadata, PARAMS).strict for d, metadata in zip(found, lines, strict=True)]
    )


def test_soft_iou_of_a_template_with_itself_is_one_and_with_nothing_zero():
    templates = full_templates(25)
    own = soft_iou(templates.shapes, templates)
    np.testing.assert_allclose(np.diag(own), 1, atol=1e-5)
    assert soft_iou(np.zeros_like(templates.shapes[:1]), templates).max() == 0
    classes = own[: len(CLASSES), : len(CLASSES)]
    assert (classes - np.eye(len(CLASSES))).max() < 0.85  # no class resembles another


@pytest.mark.parametrize("color", COLORS)
def test_coverage_is_the_glyph_whatever_its_color(color):
    cover = coverage(one("horse", color))
    mask = silhouette("horse", 36)
    placed = np.zeros((64, 64), np.float32)
    top, left = 32 - mask.shape[0] // 2, 32 - mask.shape[1] // 2
    placed[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    assert np.abs(cover - placed).mean() < 0.02
    assert cover[:4].max() == 0


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


@pytest.mark.parametrize("size", [SIZES[0] - 3, SIZES[0] + 3, SIZES[-1] - 3, SIZES[-1] + 3])
def test_sizes_a_little_off_are_tolerated(size):
    for name in CLASSES:
        best = detect(one(name, "green", size))[0]
        assert best.name == name
        assert best.score > 0.9


@pytest.mark.parametrize("tag", TAGS)
def test_ground_truth_passes_the_strict_rule(tag):
    lines, drawn = scenes(tag, 40, 11)
    assert strict_share(lines, [render(scene) for scene in drawn]) >= 0.99


@pytest.mark.parametrize("tag", ["counting", "color_attr", "position"])
def test_noise_and_soft_edges_are_tolerated(tag):
    rng = np.random.default_rng(5)
    lines, drawn = scenes(tag, 25, 12)
    assert strict_share(lines, [noisy(render(scene), rng) for scene in drawn]) >= 0.95


def test_objects_anywhere_and_two_pixels_apart():
    for name in ("car", "couch", "pizza", "clock"):
        width = silhouette(name, 23).shape[1]
        objects = tuple(
            SceneObject(name, "black", 9 + width // 2 + k * (width + 2), 40, 23) for k in range(2)
        )
        found = detect(render(Scene(objects=objects)))
        assert [d.name for d in found if d.score > 0.9] == [name, name]


def test_touching_objects_of_different_colors_keep_their_colors():
    scene = Scene(
        objects=(
            SceneObject("apple", "red", 20, 32, 23),
            SceneObject("truck", "yellow", 42, 32, 23),
        )
    )
    found = detect(render(scene))
    assert {(d.name, d.color) for d in found if d.score > 0.3} == {
        ("apple", "red"),
        ("truck", "yellow"),
    }


def test_an_empty_image_has_nothing():
    assert detect(np.full((64, 64, 3), BACKGROUND, np.uint8)) == []
    assert detect(np.zeros((64, 64, 3), np.uint8)) == []


def test_signs_have_nothing_that_counts():
    rng = np.random.default_rng(6)
    words = ["".join(rng.choice(list(LETTERS), size=rng.integers(2, 6))) for _ in range(25)]
    found = DETECTOR.detect(np.stack([render(Scene(text=word)) for word in words]))
    assert max((d.score for image in found for d in image), default=0) < 0.3


def test_other_image_sizes_are_refused():
    with pytest.raises(StarError, match="64x64"):
        DETECTOR.detect(np.zeros((1, 32, 32, 3), np.uint8))


def test_detection_is_deterministic_and_best_first():
    image = noisy(render(scenes("counting", 1, 3)[1][0]), np.random.default_rng(1))
    first, second = DETECTOR.detect(np.stack([image, image]))
    assert [(d.name, d.score, d.box, d.color) for d in first] == [
        (d.name, d.score, d.box, d.color) for d in second
    ]
    assert [d.score for d in first] == sorted((d.score for d in first), reverse=True)


def test_detections_do_not_depend_on_the_batch():
    rng = np.random.default_rng(4)
    drawn = [scene for tag in TAGS for scene in scenes(tag, 14, 8)[1]]
    images = np.stack([noisy(render(scene), rng, sigma=20.0) for scene in drawn] + [one("cat") * 0])
    order = rng.permutation(len(images))  # two chunks of other images than before
    together, shuffled = DETECTOR.detect(images), DETECTOR.detect(images[order])
    for row, index in enumerate(order):
        for others in (shuffled[row], detect(images[index])):
            for first, second in zip(together[index], others, strict=True):
                assert (first.name, first.color, first.box) == (
                    second.name,
                    second.color,
                    second.box,
                )
                assert first.score == pytest.approx(second.score, abs=1e-4)
                np.testing.assert_array_equal(first.mask, second.mask)


def test_no_images_have_no_detections():
    assert DETECTOR.detect(np.zeros((0, 64, 64, 3), np.uint8)) == []


# ---------------------------------------------------------------- malformed images


def paint(cover, color):
    share = np.clip(cover, 0, 1)[..., None]
    return np.asarray(BACKGROUND) + share * (
        np.asarray(PALETTE[color]) - np.asarray(BACKGROUND, float)
    )


def best_score(image):
    return max((d.score for d in detect(image)), default=0.0)


def test_blobs_are_nothing():
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:64, :64] - 32
    scores = []
    for _ in range(40):
        wobble = ndimage.gaussian_filter(rng.normal(size=(64, 64)), 4)
        radius = np.hypot(y, x) / rng.uniform(10, 18) + wobble / wobble.std() * rng.uniform(
            0.1, 0.6
        )
        scores.append(
            best_score(
                paint(
                    ndimage.gaussian_filter((radius < 1).astype(float), 0.8),
                    str(rng.choice(COLORS)),
                )
            )
        )
    assert np.mean(np.array(scores) < 0.3) >= 0.9
    assert np.mean(np.array(scores) < 0.9) == 1


@pytest.mark.parametrize("half", [np.s_[:, :32], np.s_[:, 32:], np.s_[:32], np.s_[32:]])
def test_halves_are_mostly_nothing(half):
    scores = []
    for name in CLASSES:
        image = one(name)
        image[half] = BACKGROUND
        scores.append(best_score(image))
    assert np.mean(np.array(scores) < 0.3) >= 0.75


def test_blur_lowers_the_score_smoothly_to_nothing():
    blurs = np.arange(0, 6.5, 0.5)
    curves = np.array(
        [
            [
                best_score(
                    ndimage.gaussian_filter(one(name, "black").astype(float), (blur, blur, 0))
                )
                for blur in blurs
            ]
            for name in CLASSES
        ]
    )
    mean = curves.mean(0)
    assert mean[blurs == 1] > 0.95
    assert mean[blurs == 6] < 0.1
    assert np.all(np.diff(mean) < 0.02)


def test_a_clock_without_hands_is_nothing():
    y, x = np.mgrid[:64, :64] - 31.5
    assert best_score(paint(18 - np.hypot(y, x), "red")) < 0.3


def test_a_two_colored_object_keeps_its_name_and_has_no_color():
    image = one("truck", "red")
    blue = one("truck", "blue")
    image[:32] = blue[:32]
    (detection,) = detect(image)
    assert (detection.name, detection.color) == ("truck", None)


def test_color_of_pixels():
    for name, value in PALETTE.items():
        pixels = np.clip(np.random.default_rng(0).normal(value, 15, (40, 3)), 0, 255).astype(
            np.uint8
        )
        assert color_name(pixels) == name
    red, blue = np.array(PALETTE["red"]), np.array(PALETTE["blue"])
    assert color_name(np.stack([red] * 7 + [blue] * 3)) == "red"
    assert color_name(np.stack([red] * 5 + [blue] * 5)) is None
    assert color_name(np.full((5, 3), (128, 255, 255))) is None  # cyan is none of the ten
