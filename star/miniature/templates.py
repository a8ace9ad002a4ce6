"""Shapes to match images of the miniature's worlds against, and the coverage maps that they are
matched with.

Coverage is how much of a pixel is foreground, in [0, 1], whatever its colour. Templates are
coverage, too, and go through the same `_soften`, so that a rendered glyph and its template are
equal."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from star.miniature.world import (
    BOARD,
    CLASSES,
    PALETTE,
    POST,
    SIZE,
    UNNAMED,
    framed,
    silhouette,
)
from star.prompts.geneval import COLORS

NAMES = (*CLASSES, *UNNAMED)
SHAPES = len(NAMES) + 9  # templates of a size at full resolution: glyphs, then blobs
MARGIN = 4  # pixels from a full template's longest side to its frame
RING = 2  # pixels around a template in which foreground counts against it
COLOR_VALUES = np.array([PALETTE[name] for name in COLORS], np.float32)  # (10, 3)
_MIN_CONTRAST = 60.0  # RGB distance of a palette colour from a background that it shows on
_LEAST_THING = 12  # pixels; less is noise
_BLUR = 0.5  # pixels
_DETAIL_BLUR = 2.5  # pixels


@dataclass(frozen=True)
class Templates:
    """Templates of one size: `NAMES` first, then (full resolution only) blobs.

    Pixels are flattened frames. ``details`` are the shapes' details inside their windows, less
    their mean there, of unit norm."""

    frame: int  # side
    shapes: np.ndarray  # float32 (templates, frame * frame)
    windows: np.ndarray  # float32 (templates, frame * frame)
    energies: np.ndarray  # float32 (templates,)
    details: np.ndarray  # float32 (templates, frame * frame)


def coverage(image: np.ndarray) -> np.ndarray:
    """Return an image's foreground coverage, sharpened and slightly blurred: float32 (height,
    width) in [0, 1]."""
    under = ground(image).reshape(-1, 3)
    away = image.reshape(-1, 3) - under  # (pixels, 3)
    dots = COLOR_VALUES @ away.T - (under * away).sum(1)  # (colours, pixels), with the rays
    lengths = np.square(under).sum(1) - 2 * COLOR_VALUES @ under.T
    lengths += np.square(COLOR_VALUES).sum(1, keepdims=True)  # squared, of the rays
    shows = lengths > _MIN_CONTRAST**2
    share = np.clip(dots / np.where(shows, lengths, np.inf), 0, 1)
    residual = share * (share * lengths - 2 * dots)  # squared distance to the ray, less a constant
    nearest = residual == residual.min(0)
    return _soften((share * nearest).max(0).reshape(image.shape[:2]))


def ground(image: np.ndarray) -> np.ndarray:
    """Return the soft gradient on which an image's objects stand: float32 (64, 64, 3).

    It is the plane through the medians of 16 parts of the image's rim."""
    planes, fit = _planes()
    return planes @ (fit @ np.median(_rim(image.astype(np.float32)), axis=1))


def count_things(image: np.ndarray, sign: bool) -> int:
    """Return how many separate things of any shape stand on an image's ground, uint8 (64, 64, 3).

    Parts within 2 pixels of each other are one thing. With ``sign`` the board and its post, which
    stand where the worlds draw them, are none."""
    shown = coverage(image) > 0.5
    if sign:
        _, y0, _, y1 = BOARD
        shown[y0 - 1 : y1 + 1] = False
        shown[:, POST[0] - 1 : POST[1] + 1] = False
    near = np.ones((3, 3))
    labels, count = ndimage.label(ndimage.binary_dilation(shown), near)
    return int((ndimage.sum(shown, labels, range(1, count + 1)) >= _LEAST_THING).sum())


def _rim(field: np.ndarray) -> np.ndarray:
    """Cut the 2 pixels wide rim of (64, 64, channels) into 16 parts: (16, pixels, channels)."""
    sides = [field[:2], field[-2:], field[:, :2].swapaxes(0, 1), field[:, -2:].swapaxes(0, 1)]
    return np.stack(sides).reshape(4, 2, 4, SIZE // 4, -1).swapaxes(1, 2).reshape(16, 32, -1)


@cache
def _planes() -> tuple[np.ndarray, np.ndarray]:
    """Return 1, x and y of each pixel, (64, 64, 3), and what fits them to the rim's parts."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) / SIZE
    planes = np.stack([np.ones_like(x), x, y], axis=2)
    return planes, np.linalg.pinv(_rim(planes).mean(1))  # (3, 16)


@cache
def full_templates(size: int) -> Templates:
    """Return glyphs and blobs whose longest side is ``size`` pixels, at full resolution."""
    side = 2 * (size // 2 + MARGIN)
    masks = [framed(silhouette(name, size), side) for name in NAMES] + _blobs(side, size)
    shapes = np.stack([_soften(mask) for mask in masks])
    around = [ndimage.binary_dilation(mask > 0.5, np.ones((3, 3)), RING) for mask in masks]
    return _packed(side, shapes, (np.stack(around) | (shapes > 0.02)).astype(np.float32))


@cache
def coarse_templates(size: int) -> Templates:
    """Return glyphs whose longest side is ``size`` pixels, at a quarter of the resolution.

    Their windows are for coarse places."""
    side = 4 * round((size + 6) / 4)

    def reduced(mask: np.ndarray) -> np.ndarray:
        return mask.reshape(side // 4, 4, side // 4, 4).mean((1, 3))

    masks = [_soften(framed(silhouette(name, size), side)) for name in NAMES]
    shapes = np.stack([reduced(mask) for mask in masks])
    windows = [reduced(ndimage.binary_dilation(mask > 0.5, iterations=3)) for mask in masks]
    return _packed(side // 4, shapes, np.stack(windows).astype(np.float32))


def detail_of(cover: np.ndarray) -> np.ndarray:
    """Return what a blob of the same extent lacks: outline, holes and gaps."""
    blob = ndimage.gaussian_filter(
        cover, _DETAIL_BLUR, mode="constant", truncate=2.0, axes=(-2, -1)
    )
    return cover - blob


def detail_correlation(detail: np.ndarray, templates: Templates, row: int) -> float:
    """Return the Pearson correlation of a patch's details (pixels,) with a template's, inside its
    window."""
    inside = detail[templates.windows[row] > 0]
    spread = np.linalg.norm(inside - inside.mean())
    return float(detail @ templates.details[row] / (spread + 1e-6))


def soft_iou(patches: np.ndarray, templates: Templates, count: int | None = None) -> np.ndarray:
    """Return the Tanimoto coefficient inside the first ``count`` windows: (patches, count).

    It is 1 where the patch is the template."""
    common = patches @ templates.shapes[:count].T
    seen = np.square(patches) @ templates.windows[:count].T
    return common / (templates.energies[:count] + seen - common)


def _soften(share: np.ndarray) -> np.ndarray:
    sharp = np.clip(2 * share - 0.5, 0, 1)
    return ndimage.gaussian_filter(sharp, _BLUR, mode="constant", truncate=3.0)


def _blobs(side: int, size: int) -> list[np.ndarray]:
    """Return shapes without a class: everything, a disc, ellipses, boxes."""
    y, x = np.mgrid[:side, :side] - side / 2
    radius, shapes = size / 2, [np.ones((side, side))]
    for aspect, degrees in ((1.0, 0), (0.6, 0), (0.6, 45), (0.6, 90), (0.6, 135)):
        angle = np.deg2rad(degrees)
        u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        shapes.append((1 - np.hypot(u / radius, v / (aspect * radius))) * radius * aspect + 0.5)
    for width, height in ((1.0, 1.0), (1.0, 0.7), (0.7, 1.0)):
        shapes.append(np.minimum(radius * width - np.abs(x), radius * height - np.abs(y)) + 0.5)
    return [np.clip(shape, 0, 1).astype(np.float32) for shape in shapes]


def _packed(frame: int, shapes: np.ndarray, windows: np.ndarray) -> Templates:
    details = np.stack([detail_of(shape) for shape in shapes]).reshape(len(shapes), -1)
    shapes, windows = (stack.reshape(len(stack), -1) for stack in (shapes, windows))
    inside = windows > 0
    means = (inside * details).sum(1, keepdims=True) / inside.sum(1, keepdims=True)
    details = inside * (details - means)
    details = (details / np.linalg.norm(details, axis=1, keepdims=True)).astype(np.float32)
    return Templates(frame, shapes, windows, np.square(shapes).sum(1), details)
