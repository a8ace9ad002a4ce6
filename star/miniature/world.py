"""The miniature's two worlds: 64x64 images of flat silhouettes and of signs with words.

An image is a `Scene`: objects with class, colour, box centre and size, or a word on a sign. In the
``plain`` world there is nothing else, on one flat ground. In the ``crowded`` world things that no
prompt names stand in most of the other places, as large and as colourful, and the ground is a soft
gradient of two muted tones: most of an image does not matter.

Places are structured (`PLACES`, `GRID`): a model of a few million parameters learns them in hours,
where objects of any size anywhere stay blobs. Silhouettes are single glyphs of Font Awesome 6 Free
Solid, which the PyPI package ``qtawesome`` carries; letters are Pillow's built-in font.

Coordinates are pixels, x to the right, y down; an image is uint8 of shape (64, 64, 3)."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

from star.prompts.geneval import COLORS, MINIATURE_CLASSES, RELATIONS

Rng = np.random.Generator
Centres = Sequence[tuple[int, int]]  # (x, y)

SIZE = 64
BACKGROUND = (160, 170, 180)
CLASSES = MINIATURE_CLASSES
_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PALETTE: dict[str, tuple[int, int, int]] = {k: tuple(v) for k, v in _TABLES["palette"].items()}
GLYPHS: dict[str, int] = _TABLES["glyphs"]  # code points, in the order of `CLASSES`
UNNAMED: dict[str, int] = _TABLES["unnamed"]  # code points of what no prompt names
WORLDS = ("plain", "crowded")

# Number of objects -> (centres, longest side, jitter), all in pixels.
PLACES = {
    1: (((32, 32),), 36, 2),
    2: (((17, 32), (47, 32)), 25, 1),
    3: (((17, 17), (47, 17), (17, 47)), 23, 1),
    4: (((17, 17), (47, 17), (17, 47), (47, 47)), 23, 1),
}
VERTICAL_PAIR = ((32, 17), (32, 47))

# The crowded world's places, in reading order; those around a sign; longest sides, in pixels.
GRID = ((17, 17), (47, 17), (17, 47), (47, 47))
AROUND_SIGN = ((17, 10), (47, 10), (17, 54), (47, 54))
GRID_SIZE, AROUND_SIZE, GRID_JITTER = 24, 17, 1
CROWD = 0.8  # probability that a place without an object of the prompt has an unnamed thing
GREYS, TINT = (125, 165), 12  # of a tone of the ground: its grey level, and a channel's distance

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORD_LENGTHS = (2, 5)
BOARD = (1, 20, 63, 44)  # x0, y0, x1, y1 of the sign's white board
POST = (30, 34)  # x of the post below it, first and end
LETTER_SLOTS = (8, 20, 32, 44, 56)  # x of the letters' centres: letter k always stands in slot k
LETTER_HEIGHT = 15  # font size in pixels of the finished image


@dataclass(frozen=True)
class SceneObject:
    """One silhouette: glyph name, colour name, box centre and longest side in pixels."""

    name: str
    color: str
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Ground:
    """A gradient from one RGB tone to another, and its direction in radians."""

    tones: tuple[tuple[int, ...], tuple[int, ...]] = (BACKGROUND, BACKGROUND)
    direction: float = 0.0


@dataclass(frozen=True)
class Scene:
    """What an image shows: objects, or a word on a sign; in the crowded world more."""

    objects: tuple[SceneObject, ...] = ()
    text: str | None = None
    unnamed: tuple[SceneObject, ...] = ()
    ground: Ground = Ground()


def sample_scene(metadata: dict, rng: np.random.Generator, world: str = "plain") -> Scene:
    """Draw a scene that satisfies a GenEval metadata line, or ``{"text": WORD}`` for a sign.

    What the line leaves open is drawn: colours of the ten uniformly (objects of one clause share
    it), the side on which either of two objects stands, the jitter. In the crowded world also the
    places, what stands in the others, and the ground.

    Args:
        world: one of `WORLDS`.

    Raises:
        ValueError: a class outside `CLASSES`, more than four objects, or a word that does not fit
            the sign.
    """
    if "text" in metadata:
        _check_word(metadata["text"])
        scene = Scene(text=metadata["text"])
        return _crowded(scene, AROUND_SIGN, AROUND_SIZE, rng) if world == "crowded" else scene
    include = metadata["include"]
    objects = _things(include, rng)
    centres: Centres
    if world == "plain":
        centres, size, jitter = PLACES[len(objects)]
        if len(include) == 2:
            centres = _related(VERTICAL_PAIR, centres, include[1], RELATIONS[:2], rng)
        return Scene(objects=_placed(objects, centres, size, jitter, rng))
    centres = [GRID[place] for place in rng.permutation(len(GRID))[: len(objects)]]
    if len(include) == 2:
        line = int(rng.integers(2))  # a row or a column
        centres = _related(GRID[line::2], GRID[2 * line :][:2], include[1], RELATIONS, rng)
    scene = Scene(objects=_placed(objects, centres, GRID_SIZE, GRID_JITTER, rng))
    return _crowded(scene, [place for place in GRID if place not in centres], GRID_SIZE, rng)


def _things(include: list[dict], rng: Rng) -> list[tuple[str, str]]:
    """Return class and colour of each object of the clauses; `ValueError` for what is not drawn."""
    things = []
    for clause in include:
        if clause["class"] not in GLYPHS:
            known = ", ".join(CLASSES)
            raise ValueError(f"the miniature has no class {clause['class']!r}; it draws: {known}")
        color = clause.get("color") or str(rng.choice(COLORS))
        things += [(clause["class"], color)] * clause["count"]
    if len(things) not in PLACES:
        raise ValueError(f"the miniature draws 1 to {max(PLACES)} objects, not {len(things)}")
    return things


def _related(
    column: Centres, row: Centres, second: dict, relations: tuple[str, ...], rng: Rng
) -> Centres:
    """Return the places of the first and second clause's object, which stand in a row or column.

    The relation is that of the *second* clause's object to the first's, as in GenEval's lines; it
    is drawn from ``relations`` if the line leaves it open."""
    drawn = relations[rng.integers(len(relations))]
    relation = second.get("position", [drawn])[0]
    pair = column if relation in ("above", "below") else row
    return pair[::-1] if relation in ("left of", "above") else pair


def _placed(
    things: list[tuple[str, str]], centres: Centres, size: int, jitter: int, rng: Rng
) -> tuple[SceneObject, ...]:
    placed = []
    for (name, color), (x, y) in zip(things, centres, strict=True):
        dx, dy = rng.integers(-jitter, jitter + 1, size=2)
        placed.append(SceneObject(name, color, int(x + dx), int(y + dy), size))
    return tuple(placed)


def _crowded(scene: Scene, free: Centres, size: int, rng: Rng) -> Scene:
    """Fill most of the free places with unnamed things, and draw the ground."""
    places = [place for place in free if rng.random() < CROWD]
    names = [(str(rng.choice(list(UNNAMED))), str(rng.choice(COLORS))) for _ in places]
    first, second = rng.integers(*GREYS, (2, 1)) + rng.integers(-TINT, TINT + 1, (2, 3))
    ground = Ground((tuple(first.tolist()), tuple(second.tolist())), rng.uniform(0, 2 * np.pi))
    unnamed = _placed(names, places, size, GRID_JITTER, rng)
    return replace(scene, unnamed=unnamed, ground=ground)


def render(scene: Scene) -> np.ndarray:
    """Render the image of a scene: uint8 (64, 64, 3)."""
    canvas = painted(scene.ground)
    for item in (*scene.objects, *scene.unnamed):
        _paste(canvas, silhouette(item.name, item.size), PALETTE[item.color], item.x, item.y)
    if scene.text is not None:
        _paint_sign(canvas, scene.text)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def painted(ground: Ground) -> np.ndarray:
    """Return the image of a ground alone: float32 (64, 64, 3)."""
    first, second = np.asarray(ground.tones, np.float32)
    dx, dy = np.cos(ground.direction), np.sin(ground.direction)
    across = np.linspace(-0.5, 0.5, SIZE)
    share = 0.5 + (across * dx + across[:, None] * dy) / (abs(dx) + abs(dy))  # in [0, 1]
    return first + (second - first) * share[..., None].astype(np.float32)


@cache
def silhouette(name: str, size: int) -> np.ndarray:
    """Return the coverage in [0, 1] of a class's or unnamed thing's glyph: float32 (height, width).

    Its longest side is ``size`` pixels."""
    font = ImageFont.truetype(str(_icon_font()), 8 * size)
    return _shrink(_glyph_image(chr((GLYPHS | UNNAMED)[name]), font), size)


@cache
def letter(character: str) -> np.ndarray:
    """Return the coverage in [0, 1] of a letter as signs show it: float32 (height, width)."""
    font = ImageFont.load_default(8 * LETTER_HEIGHT)
    large = _glyph_image(character, font, stroke=5)
    return _shrink(large, max(1, round(max(large.size) / 8)))


def framed(mask: np.ndarray, side: int) -> np.ndarray:
    """Return a silhouette or letter as images centre it: float32 (side, side), ``side`` even."""
    height, width = mask.shape
    top, left = side // 2 - height // 2, side // 2 - width // 2
    frame = np.zeros((side, side), np.float32)
    frame[top : top + height, left : left + width] = mask
    return frame


def _glyph_image(
    character: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, stroke: int = 0
) -> Image.Image:
    box = font.getbbox(character, stroke_width=stroke) if stroke else font.getbbox(character)
    large = Image.new("L", (int(box[2] - box[0]) + 8, int(box[3] - box[1]) + 8), 0)
    corner = (4 - box[0], 4 - box[1])
    ImageDraw.Draw(large).text(corner, character, 255, font=font, stroke_width=stroke)
    return large.crop(large.getbbox())


def _shrink(large: Image.Image, longest: int) -> np.ndarray:
    scale = longest / max(large.size)
    width, height = (max(1, round(side * scale)) for side in large.size)
    return np.asarray(large.resize((width, height), Image.Resampling.BOX), np.float32) / 255


def _icon_font() -> Path:
    spec = importlib.util.find_spec("qtawesome")  # never imported: importing it would want Qt
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the icon font's package qtawesome is not installed; install it")
    return next((Path(spec.origin).parent / "fonts").glob("fontawesome6-solid-webfont-*.ttf"))


def _paste(
    canvas: np.ndarray, mask: np.ndarray, color: tuple[int, int, int], x: int, y: int
) -> None:
    height, width = mask.shape
    top, left = y - height // 2, x - width // 2
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + height, SIZE), min(left + width, SIZE)
    alpha = mask[y0 - top : y1 - top, x0 - left : x1 - left, None]
    canvas[y0:y1, x0:x1] += alpha * (np.asarray(color, np.float32) - canvas[y0:y1, x0:x1])


def _paint_sign(canvas: np.ndarray, text: str) -> None:
    _check_word(text)
    x0, y0, x1, y1 = BOARD
    canvas[y1:, slice(*POST)] = (90, 60, 40)
    canvas[y0:y1, x0:x1] = (60, 60, 70)
    canvas[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = PALETTE["white"]
    for character, x in zip(text, LETTER_SLOTS, strict=False):
        _paste(canvas, letter(character), PALETTE["black"], x, (y0 + y1) // 2)


def _check_word(text: str) -> None:
    low, high = WORD_LENGTHS
    if not (low <= len(text) <= high and all(character in LETTERS for character in text)):
        takes = f"{low} to {high} capital letters A-Z"
        raise ValueError(f"the miniature's sign takes {takes}, not {text!r}")
