"""Pairs for the synthetic preference model: right and wrong captions, better and worse images of
one caption.

Everything is drawn from a generator, nothing is stored. A *wrong caption* differs from the
image's own in one fact; a *worse image* is a corruption of the better one. Images are uint8
(64, 64, 3)."""

import copy
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import map_coordinates

from star.miniature import world
from star.miniature.templates import ground
from star.pretraining.data import Sample, sample_mixture
from star.prompts.geneval import COLORS, COUNT_WORDS, RELATIONS, caption
from star.prompts.ocr import MINIATURE_TEMPLATES

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
class PairBatch:
    """``size`` images with right and wrong captions, and worse versions of the first half of them.

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


def sample_pairs(
    size: int, wrong: int, mild_share: float, rng: np.random.Generator, of: str = "plain"
) -> PairBatch:
    """Draw a training batch of one of `world.WORLDS`.

    A share of the better images is itself mildly corrupted, so that degrees count."""
    samples = sample_mixture(size, rng, of)
    better: list[np.ndarray] = []
    worse: list[np.ndarray] = []
    for item, other in zip(samples, samples[1:] + samples[:1], strict=True):
        image = item.image
        if rng.random() < mild_share:
            kind = str(rng.choice(CORRUPTIONS))
            image = corrupt(image, kind, rng.uniform(0, 0.5), rng, other.image)
        better.append(image)
        if len(worse) < size // 2:
            kind = str(rng.choice(CORRUPTIONS))
            worse.append(corrupt(image, kind, rng.uniform(0, 1), rng, other.image))
    return PairBatch(
        better=np.stack(better),
        worse=np.stack(worse),
        captions=[item.prompt for item in samples],
        wrong=[_wrong_captions(item, wrong, rng) for item in samples],
        attributes=np.array([scene_attributes(item.scene) for item in samples]),
    )


def scene_attributes(scene: world.Scene) -> list[int]:
    """Return indices into `ATTRIBUTE_SIZES`; places are in reading order."""
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


def caption_of(metadata: dict) -> str:
    """Return the prompt of a GenEval metadata line, or of ``{"text": WORD}``."""
    if "text" in metadata:
        return MINIATURE_TEMPLATES[0].format(metadata["text"])
    return caption(metadata["tag"], metadata["include"])


def wrong_caption(item: Sample, kind: str, rng: np.random.Generator) -> str:
    """Return the caption of an image with one fact made wrong.

    ``kind`` is one of ``WRONG_KINDS[item.tag]``."""
    wrong = copy.deepcopy(item.metadata)
    if kind in ("letter", "length"):
        wrong["text"] = _misspelled(wrong["text"], kind, rng)
        return caption_of(wrong)
    include = wrong["include"]
    clause = include[rng.integers(len(include))]
    if kind == "class":
        clause["class"] = _other(world.CLASSES, [c["class"] for c in include], rng)
    elif kind == "color":
        clause["color"] = _other(COLORS, [c["color"] for c in include], rng)
    elif kind == "count":
        others = [count for count in COUNT_WORDS if count != clause["count"]]
        clause["count"] = int(rng.choice(others))
    elif kind == "relation":
        include[1]["position"][0] = _other(RELATIONS, include[1]["position"][:1], rng)
    elif kind in ("swapped_objects", "swapped_colors"):
        key = "class" if kind == "swapped_objects" else "color"
        include[0][key], include[1][key] = include[1][key], include[0][key]
    else:
        raise ValueError(f"no wrong caption of kind {kind!r}")
    return caption_of(wrong)


def _wrong_captions(item: Sample, count: int, rng: np.random.Generator) -> list[str]:
    kinds = rng.choice(WRONG_KINDS[item.tag], size=count)
    return [wrong_caption(item, str(kind), rng) for kind in kinds]


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
    """Return a worse image of the same size.

    Args:
        image: uint8 (64, 64, 3).
        kind: one of `CORRUPTIONS`.
        severity: 0 (just visible) to 1 (gross).
        rng: source of randomness, advanced.
        other: a second image, which ``ghost`` lays over the first.
    """
    background = ground(image)
    match kind:
        case "noise":
            worse = image + rng.normal(0, 8 + 40 * severity, image.shape)
        case "blur":
            worse = _blurred(image, 0.6 + 2 * severity)
        case "bleed":  # colours leak from the objects into their surroundings
            worse = image + (0.2 + 0.5 * severity) * (_blurred(image, 4) - background)
        case "faded":
            worse = image + (0.15 + 0.55 * severity) * (background - image)
        case "erased":
            worse = _erased(image, background, severity, rng)
        case "jpeg":
            worse = _jpeg(image, round(35 - 30 * severity))
        case "ghost":
            worse = image + (0.15 + 0.3 * severity) * (other.astype(np.float32) - image)
        case "warp":
            worse = _warp(image, severity, rng)
        case "soft":
            worse = _soft(image, severity, rng)
        case _:
            raise ValueError(f"no corruption of kind {kind!r}; known: {', '.join(CORRUPTIONS)}")
    return np.clip(worse + 0.5, 0, 255).astype(np.uint8)


def _blurred(image: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)), np.float32)


def _erased(
    image: np.ndarray, background: np.ndarray, severity: float, rng: np.random.Generator
) -> np.ndarray:
    """Lay one to three rectangles of background on what stands on it."""
    worse = image.astype(np.float32)
    rows, columns = np.nonzero(np.abs(image - background).sum(axis=2) > 60)
    for _ in range(int(rng.integers(1, 4)) if len(rows) else 0):
        place = rng.integers(len(rows))
        height, width = rng.integers(2, 4 + round(4 * severity), size=2)  # half sides
        y, x = max(rows[place] - height, 0), max(columns[place] - width, 0)
        square = np.s_[y : y + 2 * height, x : x + 2 * width]
        worse[square] = background[square]
    return worse


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream), np.float32)


def _warp(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Move pixels smoothly by up to some 2 to 6 pixels: malformed outlines."""
    coarse = rng.uniform(-1, 1, (2, 6, 6)).astype(np.float32) * (2 + 4 * severity)
    fields = np.stack([_resized(field) for field in coarse])
    places = np.mgrid[: world.SIZE, : world.SIZE] + fields
    channels = [
        map_coordinates(channel, places, order=1, mode="nearest")
        for channel in np.moveaxis(image.astype(np.float32), 2, 0)
    ]
    return np.stack(channels, axis=2)


def _soft(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Soften and stain in low frequencies, as a weak autoencoder does."""
    small = round(40 - 22 * severity)
    reduced = Image.fromarray(image).resize((small, small), Image.Resampling.BOX)
    stains = rng.normal(0, 4 + 8 * severity, (8, 8, 3))
    return _resized(np.asarray(reduced)).astype(np.float32) + np.kron(stains, np.ones((8, 8, 1)))


def _resized(image: np.ndarray) -> np.ndarray:
    sides = (world.SIZE, world.SIZE)
    return np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.BICUBIC))
