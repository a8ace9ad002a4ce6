"""A second reader of the miniature's signs, which no training sees: the world's 26 letters matched
in its five slots.

It checks the OCR reward from outside. A policy that learned what pleases PP-OCR, and not to write,
would gain there and not here. It shares nothing with `star.rewards.ocr`: no network, no dictionary,
no segmentation of lines.

Ink is how dark a pixel is, in [0, 1]: 0 on the white board, 1 in a letter. A slot's frame is
correlated (Pearson) with every letter at every place up to `SHIFT` pixels off the slot's. The slot
reads the letter that correlates best. It is empty where there is no board or hardly any ink, and
illegible where the correlation is below `MIN_CORRELATION`."""

from functools import cache

import numpy as np
from scipy import ndimage

from star.miniature.world import BOARD, LETTER_SLOTS, LETTERS, SIZE, framed, letter
from star.system.errors import StarError

SHIFT = 3  # pixels, in x and in y, that a letter may stand off its place in the world
MIN_CORRELATION = 0.8  # halves of letters and blots stay below, letters with a dent above
MIN_INK = 14.0  # pixels of full ink in a slot's frame; the world's lightest letter, I, has 36
MAX_PAPER = 0.15  # ink of a board's white; the world's background has 0.3

_WHITE, _BLACK = 225.0, 40.0  # grey values at which ink is 0 and 1
_BLUR = 0.5  # pixels, of images and letters
_FRAME = (18, 11)  # of a slot, height and width; wide letters are cut, few neighbours reach in
_SHIFT_COST = 0.01  # of correlation, a pixel off the letter's place
_BOARD_SHARE = 0.9  # of the board's columns that must be white
_CHUNK = 64  # images read together

# Rows and columns of the ink, which is padded by `SHIFT`.
_X0, _Y0, _X1, _Y1 = (SHIFT + edge for edge in BOARD)
_STEPS = np.arange(-SHIFT, SHIFT + 1)
_TOPS = SHIFT + (BOARD[1] + BOARD[3]) // 2 - _FRAME[0] // 2 + _STEPS  # (steps,)
_LEFTS = SHIFT + np.array(LETTER_SLOTS)[:, None] - _FRAME[1] // 2 + _STEPS  # (slots, steps)
_MARGINS = np.r_[_Y0 + 2 : _Y0 + 6, _Y1 - 6 : _Y1 - 2]  # above and below the letters
_WIDTH = slice(_X0 + 1, _X1 - 1)  # of the board, inside its edge
_PLACES = len(_STEPS) ** 2  # of a slot's frame; the one in the middle is the world's
_COSTS = _SHIFT_COST * np.hypot(_STEPS[:, None], _STEPS).reshape(-1, 1)  # (places, 1)


def read_letters(images: np.ndarray) -> list[str]:
    """Read the word of each image: the letters A-Z of its legible slots from left to right.

    Slots that are empty or illegible are left out wherever they are, as in PP-OCR's text without
    its spaces. If reading stopped at the first, one blot would hide all letters behind it.

    Args:
        images: uint8 (n, 64, 64, 3), RGB.

    Raises:
        StarError: images of another size or type.
    """
    scores = letter_scores(images)
    found = zip(scores.argmax(2), scores.max(2) >= MIN_CORRELATION, strict=True)
    return ["".join(LETTERS[index] for index in best[legible]) for best, legible in found]


def letter_scores(images: np.ndarray) -> np.ndarray:
    """Return how well each slot shows each letter: float32 (n, 5 slots, 26 letters).

    A score is the best correlation, less `_SHIFT_COST` for each pixel between its place and the
    world's: in [-1.05, 1], -1 in empty slots.

    Raises:
        StarError: images of another size or type.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
        raise StarError(
            f"miniature.reader reads uint8 images of {SIZE}x{SIZE} pixels, got {images.dtype} "
            f"{images.shape}; set model.resolution to {SIZE}"
        )
    scores = np.empty((len(images), len(LETTER_SLOTS), len(LETTERS)), np.float32)
    for first in range(0, len(images), _CHUNK):
        scores[first : first + _CHUNK] = _chunk_scores(images[first : first + _CHUNK])
    return scores


def _chunk_scores(images: np.ndarray) -> np.ndarray:
    ink = _ink(images)
    frames = np.lib.stride_tricks.sliding_window_view(ink, _FRAME, axis=(1, 2))
    patches = frames[:, _TOPS[:, None], _LEFTS[:, None, :]]  # (n, slots, y, x, height, width)
    patches = patches.reshape(len(ink), len(LETTER_SLOTS), _PLACES, -1)  # (n, slots, places, px)
    inked = patches[:, :, _PLACES // 2].sum(2) >= MIN_INK  # (n, slots)
    written = _has_board(ink)[:, None] & inked
    patches -= patches.mean(3, keepdims=True)
    norms = np.linalg.norm(patches, axis=3, keepdims=True)
    correlations = patches @ _templates() / np.maximum(norms, 1e-6)  # (n, slots, places, letters)
    return np.where(written[..., None], (correlations - _COSTS).max(2), -1)


def _ink(images: np.ndarray) -> np.ndarray:
    """Return the blurred ink inside the board's edge, 0 outside: float32 (n, 64 + 2 x `SHIFT`,
    64 + 2 x `SHIFT`)."""
    x0, y0, x1, y1 = BOARD
    inside = np.s_[:, y0 + 2 : y1 - 2, x0 + 1 : x1 - 1]
    dark = (_WHITE - images[inside].mean(3, dtype=np.float32)) / (_WHITE - _BLACK)
    ink = np.zeros(images.shape[:3], np.float32)
    ink[inside] = np.clip(dark, 0, 1)
    return np.pad(_blurred(ink), ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))


def _has_board(ink: np.ndarray) -> np.ndarray:
    """Tell whether most of the board's columns are white above or below the letters: bool (n,)."""
    return (ink[:, _MARGINS, _WIDTH].min(1) <= MAX_PAPER).mean(1) >= _BOARD_SHARE


@cache
def _templates() -> np.ndarray:
    """Return the blurred letters in a slot's frame, less their mean, of unit norm.

    float32 (pixels, 26)."""
    shapes = _blurred(np.stack([framed(letter(character), SIZE) for character in LETTERS]))
    top, left = SIZE // 2 - _FRAME[0] // 2, SIZE // 2 - _FRAME[1] // 2
    frames = shapes[:, top : top + _FRAME[0], left : left + _FRAME[1]]
    frames = frames.reshape(len(LETTERS), -1)
    frames -= frames.mean(1, keepdims=True)
    return (frames / np.linalg.norm(frames, axis=1, keepdims=True)).T


def _blurred(ink: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(ink, _BLUR, truncate=3.0, axes=(1, 2))
