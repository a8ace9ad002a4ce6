"""The miniature's world: 64x64 images of flat silhouettes and of signs with words.

An image is a `Scene` (objects with class, colour, box centre and size, or a word on a sign)
rendered on one fixed background. Places are structured (see `PLACES`): a model of a few million
parameters learns them in hours, where objects of any size anywhere stay blobs. Silhouettes are
single glyphs of Font Awesome 6 Free Solid, which the PyPI package ``qtawesome`` carries; letters
are Pillow's built-in font.

Coordinates are pixels, x to the right, y down; an image is uint8 of shape (64, 64, 3)."""

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

from star.prompts.geneval import COLORS, MINIATURE_CLASSES, RELATIONS

SIZE = 64
BACKGROUND = (160, 170, 180)
CLASSES = MINIATURE_CLASSES
_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PALETTE: dict[str, tuple[int, int, int]] = {k: tuple(v) for k, v in _TABLES["palette"].items()}
GLYPHS: dict[str, int] = _TABLES["glyphs"]  # code points, in the order of `CLASSES`

# Number of objects -> (centres, longest side, jitter), all in pixels.
PLACES = {
    1: (((32, 32),), 36, 2),
    2: (((17, 32), (47, 32)), 25, 1),
    3: (((17, 17), (47, 17), (17, 47)), 23, 1),
    4: (((17, 17), (47, 17), (17, 47), (47, 47)), 23, 1),
}
VERTICAL_PAIR = ((32, 17), (32, 47))

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORD_LENGTHS = (2, 5)
BOARD = (1, 20, 63, 44)  # x0, y0, x1, y1 of the sign's white board
LETTER_SLOTS = (8, 20, 32, 44, 56)  # x of the letters' centres: letter k always stands in slot k
LETTER_HEIGHT = 15  # font size in pixels of the finished image


@dataclass(frozen=True)
class SceneObject:
    """One silhouette: GenEval class name, colour name, box centre and longest side in pixels."""

    name: str
    color: str
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Scene:
    """What an image shows: objects, or a word on a sign."""

    objects: tuple[SceneObject, ...] = ()
    text: str | None = None


def sample_scene(metadata: dict, rng: np.random.Generator) -> Scene:
    """Draw a scene that satisfies a GenEval metadata line, or ``{"text": WORD}`` for a sign.

    What the line leaves open is drawn: colours of the ten uniformly (objects of one clause share
    it), the side on which either of two objects stands, the jitter.

    Raises:
        ValueError: a class outside `CLASSES`, more than four objects, or a word that does not fit
            the sign.
    """
    if "text" in metadata:
        _check_word(metadata["text"])
        return Scene(text=metadata["text"])
    include = metadata["include"]
    objects = []
    for clause in include:
        color = clause.get("color") or str(rng.choice(COLORS))
        objects += [(clause["class"], color)] * clause["count"]
    if len(objects) not in PLACES:
        raise ValueError(f"the miniature draws 1 to {max(PLACES)} objects, not {len(objects)}")
    centres, size, jitter = PLACES[len(objects)]
    if len(include) == 2:
        # The relation of the *second* clause's object to the first's, as in GenEval's lines.
        relation = include[1].get("position", [RELATIONS[rng.integers(2)]])[0]
        if relation in ("above", "below"):
            centres = VERTICAL_PAIR
        if relation in ("left of", "above"):
            centres = centres[::-1]
    placed = []
    for (name, color), (x, y) in zip(objects, centres, strict=True):
        if name not in GLYPHS:
            raise ValueError(f"the miniature has no class {name!r}; it draws: {', '.join(CLASSES)}")
        dx, dy = rng.integers(-jitter, jitter + 1, size=2)
        placed.append(SceneObject(name, color, int(x + dx), int(y + dy), size))
    return Scene(objects=tuple(placed))


def render(scene: Scene) -> np.ndarray:
    """Render the image of a scene: uint8 (64, 64, 3)."""
    canvas = np.empty((SIZE, SIZE, 3), np.float32)
    canvas[:] = BACKGROUND
    for item in scene.objects:
        _paste(canvas, silhouette(item.name, item.size), PALETTE[item.color], item.x, item.y)
    if scene.text is not None:
        _paint_sign(canvas, scene.text)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


@cache
def silhouette(name: str, size: int) -> np.ndarray:
    """Return the coverage in [0, 1] of a class's glyph: float32 (height, width).

    Its longest side is ``size`` pixels."""
    font = ImageFont.truetype(str(_icon_font()), 8 * size)
    return _shrink(_glyph_image(chr(GLYPHS[name]), font), size)


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
    canvas[y1:, 30:34] = (90, 60, 40)
    canvas[y0:y1, x0:x1] = (60, 60, 70)
    canvas[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = PALETTE["white"]
    for character, x in zip(text, LETTER_SLOTS, strict=False):
        _paste(canvas, letter(character), PALETTE["black"], x, (y0 + y1) // 2)


def _check_word(text: str) -> None:
    low, high = WORD_LENGTHS
    if not (low <= len(text) <= high and all(character in LETTERS for character in text)):
        takes = f"{low} to {high} capital letters A-Z"
        raise ValueError(f"the miniature's sign takes {takes}, not {text!r}")
