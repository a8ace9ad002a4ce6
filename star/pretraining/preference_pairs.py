"""Pairs for the synthetic preference model: right and wrong captions, better and worse images of
one caption.

Everything is drawn from a generator, nothing is stored. A *wrong caption* differs from the
image's own in one fact; a *worse image* is a corruption of the better one. Images are uint8
(64, 64, 3)."""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import map_coordinates

from star.miniature import world
from star.pretraining.generator import TAG_WEIGHTS, sample_sign
from star.prompts.geneval import (
    COLORS,
    COUNT_WORDS,
    RELATIONS,
    plural,
    sample_metadata,
    with_article,
)

# Tag -> the facts of its captions that can be made wrong.
WRONG_KINDS = {
    "single_object": ("class",),
    "two_object": ("class",),
    "counting": ("count", "class"),
    "colors": ("color", "class"),
    "position": ("swapped_objects", "relation", "class"),
    "color_attr": ("swapped_colors", "color", "class"),
    "sign": ("letter", "length"),
}
CORRUPTIONS = ("noise", "blur", "bleed", "faded", "erased", "jpeg", "ghost", "warp", "soft")
IGNORED = -100  # target of an attribute that a scene does not have
# Attributes of a scene: layout (sign, 1-4 objects, vertical pair), then per place class, colour and
# letter.
ATTRIBUTE_SIZES = (
    6,
    *(len(world.CLASSES),) * 4,
    *(len(COLORS),) * 4,
    *(len(world.LETTERS) + 1,) * 5,
)


@dataclass(frozen=True)
class Sample:
    """An image's facts: GenEval metadata (tag ``sign`` for a word), scene, and the clean
    image."""

    tag: str
    metadata: dict
    scene: world.Scene
    image: np.ndarray


@dataclass(frozen=True)
class PairBatch:
    """``size`` images with right and wrong captions, and a worse version of the first half of
    them.

    Attributes:
        better: uint8 (size, 64, 64, 3).
        worse: uint8 (size // 2, 64, 64, 3); image i is a corruption of ``better[i]``.
        captions: the right captions.
        wrong: wrong captions, the same number for each image.
        attributes: int64 (size, len(ATTRIBUTE_SIZES)), `IGNORED` where a scene has none.
    """

    better: np.ndarray
    worse: np.ndarray
    captions: list[str]
    wrong: list[list[str]]
    attributes: np.ndarray


def sample(tag: str, rng: np.random.Generator) -> Sample:
    """One image of a tag of `WRONG_KINDS` with its facts."""
    metadata = sample_sign(rng) if tag == "sign" else sample_metadata(tag, world.CLASSES, rng)
    scene = world.sample_scene(metadata, rng)
    return Sample(tag, metadata, scene, world.render(scene))


def sample_pairs(size: int, wrong: int, mild_share: float, rng: np.random.Generator) -> PairBatch:
    """A training batch; a share of the better images is itself mildly corrupted, so that degrees
    count."""
    names, weights = list(TAG_WEIGHTS), np.array(list(TAG_WEIGHTS.values()))
    samples = [sample(tag, rng) for tag in rng.choice(names, size=size, p=weights / weights.sum())]
    better: list[np.ndarray] = []
    worse: list[np.ndarray] = []
    for item, other in zip(samples, samples[1:] + samples[:1], strict=True):
        image = item.image
        if rng.random() < mild_share:
            image = corrupt(
                image, str(rng.choice(CORRUPTIONS)), rng.uniform(0, 0.5), rng, other.image
            )
        better.append(image)
        if len(worse) < size // 2:
            worse.append(
                corrupt(image, str(rng.choice(CORRUPTIONS)), rng.uniform(0, 1), rng, other.image)
            )
    return PairBatch(
        better=np.stack(better),
        worse=np.stack(worse),
        captions=[item.metadata["prompt"] for item in samples],
        wrong=[
            [
                wrong_caption(item, str(kind), rng)
                for kind in rng.choice(WRONG_KINDS[item.tag], size=wrong)
            ]
            for item in samples
        ],
        attributes=np.array([scene_attributes(item.scene) for item in samples]),
    )


def scene_attributes(scene: world.Scene) -> list[int]:
    """Indices into `ATTRIBUTE_SIZES`; places in reading order."""
    if scene.text is not None:
        letters = [world.LETTERS.index(character) for character in scene.text]
        return [0, *[IGNORED] * 8, *letters, *[len(world.LETTERS)] * (5 - len(letters))]
    objects = sorted(scene.objects, key=lambda item: (item.y // 24, item.x))
    vertical = len(objects) == 2 and objects[0].y // 24 != objects[1].y // 24
    absent = [IGNORED] * (4 - len(objects))
    classes = [world.CLASSES.index(item.name) for item in objects] + absent
    colors = [COLORS.index(item.color) for item in objects] + absent
    return [5 if vertical else len(objects), *classes, *colors, *[IGNORED] * 5]


# ---------------------------------------------------------------- captions


def caption(metadata: dict) -> str:
    """The prompt of a GenEval metadata line, or of ``{"text": WORD}``."""
    if "text" in metadata:
        return f'a sign that says "{metadata["text"]}"'
    include = metadata["include"]
    nouns = [
        f"{clause['color']} {clause['class']}" if "color" in clause else clause["class"]
        for clause in include
    ]
    if metadata["tag"] == "counting":
        content = f"{COUNT_WORDS[include[0]['count']]} {plural(nouns[0])}"
    elif metadata["tag"] == "position":
        content = f"{with_article(nouns[1])} {include[1]['position'][0]} {with_article(nouns[0])}"
    else:
        content = " and ".join(map(with_article, nouns))
    return f"a photo of {content}"


def wrong_caption(item: Sample, kind: str, rng: np.random.Generator) -> str:
    """The caption of an image with one fact made wrong; ``kind`` is one of
    ``WRONG_KINDS[item.tag]``."""
    wrong = copy.deepcopy(item.metadata)
    if kind in ("letter", "length"):
        wrong["text"] = _misspelled(wrong["text"], kind, rng)
        return caption(wrong)
    include = wrong["include"]
    clause = include[rng.integers(len(include))]
    if kind == "class":
        clause["class"] = _other(world.CLASSES, [c["class"] for c in include], rng)
    elif kind == "color":
        clause["color"] = _other(COLORS, [c["color"] for c in include], rng)
    elif kind == "count":
        clause["count"] = int(
            rng.choice([count for count in COUNT_WORDS if count != clause["count"]])
        )
    elif kind == "relation":
        include[1]["position"][0] = _other(RELATIONS, include[1]["position"][:1], rng)
    elif kind in ("swapped_objects", "swapped_colors"):
        key = "class" if kind == "swapped_objects" else "color"
        include[0][key], include[1][key] = include[1][key], include[0][key]
    else:
        raise ValueError(f"no wrong caption of kind {kind!r}")
    return caption(wrong)


def _other(values: tuple[str, ...], taken: list[str], rng: np.random.Generator) -> str:
    return str(rng.choice([value for value in values if value not in taken]))


def _misspelled(word: str, kind: str, rng: np.random.Generator) -> str:
    low, high = world.WORD_LENGTHS
    place = int(rng.integers(len(word)))
    if kind == "letter":
        return word[:place] + _other(tuple(world.LETTERS), [word[place]], rng) + word[place + 1 :]
    if len(word) == high or (len(word) > low and rng.random() < 0.5):
        return word[:place] + word[place + 1 :]
    return word[:place] + str(rng.choice(list(world.LETTERS))) + word[place:]


# ---------------------------------------------------------------- images


def corrupt(
    image: np.ndarray, kind: str, severity: float, rng: np.random.Generator, other: np.ndarray
) -> np.ndarray:
    """A worse image of the same size.

    Args:
        image: uint8 (64, 64, 3).
        kind: one of `CORRUPTIONS`.
        severity: 0 (just visible) to 1 (gross).
        rng: source of randomness, advanced.
        other: a second image, which ``ghost`` lays over the first.
    """
    if kind == "ghost":
        worse = image + (0.15 + 0.3 * severity) * (other.astype(np.float32) - image)
    else:
        worse = _EFFECTS[kind](image, severity, rng)
    return np.clip(worse + 0.5, 0, 255).astype(np.uint8)


def _noise(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    return image + rng.normal(0, 8 + 40 * severity, image.shape)


def _blurred(image: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)), np.float32)


def _blur(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    return _blurred(image, 0.6 + 2 * severity)


def _bleed(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Colours leak from the objects into their surroundings."""
    halo = _blurred(image, 4) - np.asarray(world.BACKGROUND, np.float32)
    return image + (0.2 + 0.5 * severity) * halo


def _faded(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    return image + (0.15 + 0.55 * severity) * (np.asarray(world.BACKGROUND, np.float32) - image)


def _erased(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Parts of the objects are missing: one to three rectangles of background, centred on
    foreground."""
    worse = image.copy()
    rows, columns = np.nonzero(np.abs(image.astype(np.int16) - world.BACKGROUND).sum(axis=2) > 60)
    for _ in range(int(rng.integers(1, 4)) if len(rows) else 0):
        place = rng.integers(len(rows))
        height, width = rng.integers(2, 4 + round(4 * severity), size=2)  # half sides
        y, x = max(rows[place] - height, 0), max(columns[place] - width, 0)
        worse[y : y + 2 * height, x : x + 2 * width] = world.BACKGROUND
    return worse


def _jpeg(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=round(35 - 30 * severity))
    return np.asarray(Image.open(stream), np.float32)


def _warp(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth random displacement of up to some 2 to 6 pixels: malformed outlines."""
    coarse = rng.uniform(-1, 1, (2, 6, 6)).astype(np.float32) * (2 + 4 * severity)
    fields = [
        np.asarray(Image.fromarray(c).resize((world.SIZE,) * 2, Image.Resampling.BICUBIC))
        for c in coarse
    ]
    places = np.mgrid[: world.SIZE, : world.SIZE] + np.stack(fields)
    channels = [
        map_coordinates(image[..., c].astype(np.float32), places, order=1, mode="nearest")
        for c in range(3)
    ]
    return np.stack(channels, axis=2)


def _soft(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Softness and low-frequency stains, as a weak autoencoder leaves them."""
    small = round(40 - 22 * severity)
    reduced = Image.fromarray(image).resize((small, small), Image.Resampling.BOX)
    stains = rng.normal(0, 4 + 8 * severity, (8, 8, 3))
    upsampled = np.asarray(reduced.resize((world.SIZE,) * 2, Image.Resampling.BICUBIC), np.float32)
    return upsampled + np.kron(stains, np.ones((8, 8, 1)))


_EFFECTS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "noise": _noise,
    "blur": _blur,
    "bleed": _bleed,
    "faded": _faded,
    "erased": _erased,
    "jpeg": _jpeg,
    "warp": _warp,
    "soft": _soft,
}
