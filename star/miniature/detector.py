"""The miniature's exact detector: template matching against the glyphs that `star.miniature.world` draws.

How it works, in pixels of a 64x64 picture:

1. *Coverage.* The background is the median of the frame's rim. A pixel's colour minus the background is projected on
   the ray towards each palette colour; the length along the nearest ray is its coverage in [0, 1], so a soft edge of
   any colour counts alike, and touching objects need no segmentation. Coverage is sharpened about 1/2 and slightly
   blurred, and so are the templates: a shape that is off by a fraction of a pixel still matches.
2. *Proposals.* Every place, every class, a few sizes, at a quarter of the resolution.
3. *Refinement.* Place and size to one pixel at full resolution, by the soft IoU (Tanimoto coefficient)
   ``I = <A, T> / (|T|^2 + |A|^2_W - <A, T>)``; the window ``W`` is the template swollen by `templates.RING` pixels,
   so a neighbour further away costs nothing.
4. *Score* = quality x posterior, the form of Mask2Former's (mask quality x class probability). Quality is
   ``sigmoid((r - 0.55) / 0.04)``, where ``r`` correlates the details of picture and template (outline, holes, gaps:
   each less its Gaussian blur) inside the window: 0.5 at r = 0.55, 0.9 at 0.64. The posterior is a softmax of
   ``I / 0.015`` over classes and shapes without a class (disc, ellipses, boxes). One place gets one name, the
   best: an ambiguous shape is never two objects.

How it fails on malformed pictures. A wobbly, noisy or slightly blurred silhouette that a person names at once keeps a
score over 0.9; further distortion lowers the score smoothly: at a wobble of 1 pixel rms about half of the two-object
pictures keep both objects over 0.9, nine in ten over 0.3. Blobs, halves of glyphs and glyphs blurred to mush (sigma an
eighth of the size) score under 0.3 in 98, 92 and 85 % of trials; what remains is a canopy without its stick (still an
umbrella), a truck's lower half (a car), a round blob with a notch (an apple). A clock without hands is a disc, so it
is nothing. An object under another, or cut by the picture's edge by more than a few pixels, is usually missed. A
background that is not flat is read as foreground and hides what stands on it. Colour is the palette's entry nearest to
the interior's median, and None when that is far from all ten or when too little of the interior agrees: a two-coloured
cat is a cat of no colour.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from star.errors import StarError
from star.miniature.templates import (
    COLOR_VALUES,
    coarse_templates,
    coverage,
    detail_correlation,
    detail_of,
    full_templates,
    soft_iou,
)
from star.miniature.world import CLASSES, SIZE
from star.prompts.geneval import COLORS
from star.rewards.detection import Detection

MIN_SCORE = 0.05
DETAIL_HALF, DETAIL_SLOPE = 0.55, 0.04  # of the correlation of details
POSTERIOR_SCALE = 0.015  # of the soft IoU
COLOR_REACH = 70.0  # RGB distance beyond which a colour is none of the ten; the palette's closest pair is 95 apart
COLOR_SHARE = 0.6  # of the interior pixels that must agree on the colour

_PAD = 10  # background pixels added on each side
_HOPELESS_IOU = 0.55  # after the first refinement: the score could not reach MIN_SCORE
_COARSE_SIZES = (20, 23, 27, 31, 36)
_COARSE_IOU = 0.5
_MAX_PROPOSALS = 12  # a picture
_SHIFTS = np.array([(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])


@dataclass(frozen=True)
class _Proposal:
    """A likely object: centre and longest side in padded pixels."""

    y: int
    x: int
    size: int


@dataclass(frozen=True)
class _Match:
    """A refined proposal: its best class and the pose of its template in padded pixels."""

    score: float
    label: int
    y: int
    x: int
    size: int


class ExactDetector:
    """Detector of the miniature's sixteen silhouettes; implements `star.rewards.detection.Detector`."""

    classes: tuple[str, ...] = CLASSES

    def detect(self, images: np.ndarray) -> list[list[Detection]]:
        """Detections of each picture with a score of at least `MIN_SCORE`, best first.

        Args:
            images: uint8 (n, 64, 64, 3).

        Raises:
            StarError: pictures of another size or type.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
            raise StarError(
                f"rewards.geneval.detector: `exact` reads uint8 pictures of {SIZE}x{SIZE} pixels, got {images.dtype} "
                f"{images.shape}; set model.resolution to {SIZE}"
            )
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: np.ndarray) -> list[Detection]:
        padded = np.pad(coverage(image), _PAD)
        detail = detail_of(padded)
        matches: list[_Match] = []
        for proposal in _propose(padded):
            if any(_explains(match, proposal) for match in matches):
                continue
            match = _refine(padded, detail, proposal)
            if match is not None and match.score >= MIN_SCORE:
                matches.append(match)
        taken = np.zeros(padded.shape, bool)
        detections = []
        for match in sorted(matches, key=lambda m: -m.score):
            mask = _object_mask(padded, match)
            if not mask.any() or (mask & taken).sum() > 0.3 * mask.sum():
                continue
            taken |= mask
            inside = mask[_PAD:-_PAD, _PAD:-_PAD]
            if inside.any():
                detections.append(_detection(image, padded[_PAD:-_PAD, _PAD:-_PAD], match, inside))
        return detections


# ---------------------------------------------------------------- search


def _propose(padded: np.ndarray) -> list[_Proposal]:
    """Local maxima of the coarse match over places and sizes, best first."""
    half = padded.reshape(len(padded) // 2, 2, -1, 2).mean((1, 3))
    smooth = (half[:-1, :-1] + half[1:, :-1] + half[:-1, 1:] + half[1:, 1:]) / 4  # 4x4 means, every 2 pixels
    found = []
    for size in _COARSE_SIZES:
        templates = coarse_templates(size)
        side = templates.frame
        count = len(smooth) - 2 * (side - 1)
        strides = (*smooth.strides, 2 * smooth.strides[0], 2 * smooth.strides[1])
        views = np.lib.stride_tricks.as_strided(smooth, (count, count, side, side), strides, writeable=False)
        patches = views.reshape(count * count, side * side)
        places = np.flatnonzero(patches.sum(1) > 0.22 * (size / 4) ** 2)  # no glyph covers less of its square
        iou = soft_iou(patches[places], templates)
        field = np.zeros(count * count, np.float32)
        field[places] = iou.max(1)
        peaks = ndimage.maximum_filter(field.reshape(count, count), 3).ravel()[places]
        good = np.flatnonzero((field[places] == peaks) & (peaks > _COARSE_IOU))
        row, column = np.divmod(places[good], count)
        poses = np.stack([2 * row + 2 * side, 2 * column + 2 * side, np.full(len(good), size)], 1)
        found.append((poses, peaks[good]))
    return _local_maxima(np.concatenate([p for p, _ in found]), np.concatenate([s for _, s in found]))


def _local_maxima(poses: np.ndarray, iou: np.ndarray) -> list[_Proposal]:
    poses = poses[np.argsort(-iou, kind="stable")]
    proposals: list[_Proposal] = []
    while len(poses) and len(proposals) < _MAX_PROPOSALS:
        y, x, size = (int(value) for value in poses[0])
        distance = np.hypot(poses[:, 0] - y, poses[:, 1] - x)
        near = (distance < 0.25 * np.minimum(poses[:, 2], size)) & (np.abs(np.log(poses[:, 2] / size)) < 0.2)
        proposals.append(_Proposal(y, x, size))
        poses = poses[~near]
    return proposals


def _explains(match: _Match, proposal: _Proposal) -> bool:
    """Whether a sure match already stands where the proposal's centre is."""
    reach = 0.35 * match.size
    return match.score > 0.7 and abs(match.y - proposal.y) < reach and abs(match.x - proposal.x) < reach


def _refine(padded: np.ndarray, detail: np.ndarray, proposal: _Proposal) -> _Match | None:
    """Place and size at full resolution, in steps of 2 and then 1 pixel, then the score; None if nothing fits."""
    iou, poses = _best_poses(padded, np.array([proposal.y, proposal.x, proposal.size]), 2)
    start = int(iou[: len(CLASSES)].argmax())
    if iou[start] < _HOPELESS_IOU:
        return None
    iou, poses = _best_poses(padded, poses[start], 1)
    label = int(iou[: len(CLASSES)].argmax())
    y, x, size = (int(value) for value in poses[label])
    templates = full_templates(size)
    posterior = 1 / np.exp((iou - iou[label]) / POSTERIOR_SCALE).sum()
    agreement = detail_correlation(_frame_at(detail, y, x, templates.frame).ravel(), templates, label)
    quality = 1 / (1 + np.exp((DETAIL_HALF - agreement) / DETAIL_SLOPE))
    return _Match(float(quality * posterior), label, y, x, size)


def _best_poses(padded: np.ndarray, pose: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Best soft IoU of each template, and its (y, x, size), over the 27 poses within ``step`` of ``pose``."""
    values, poses = [], []
    pixels = padded.ravel()
    for size in (pose[2], pose[2] - step, pose[2] + step):
        templates = full_templates(int(size))
        half = templates.frame // 2
        y, x = np.clip(pose[:2], half + step, len(padded) - half - step)
        first = (y - half) * len(padded) + x - half
        patches = pixels[first + _frame_indices(templates.frame, step, len(padded))]
        values.append(soft_iou(patches, templates))
        poses.append(np.column_stack([_SHIFTS * step + (y, x), np.full(9, size)]))
    iou, tried = np.concatenate(values), np.concatenate(poses)  # (27, templates), (27, 3)
    winner = iou.argmax(0)
    return iou[winner, np.arange(len(winner))], tried[winner]


@cache
def _frame_indices(side: int, step: int, width: int) -> np.ndarray:
    """Flat indices, relative to a frame's corner, of the nine frames ``step`` apart: (9, side * side)."""
    corners = step * (_SHIFTS[:, 0] * width + _SHIFTS[:, 1])
    inside = np.arange(side)[:, None] * width + np.arange(side)
    return corners[:, None] + inside.ravel()


def _frame_at(padded: np.ndarray, y: int, x: int, side: int) -> np.ndarray:
    return padded[y - side // 2 : y + side // 2, x - side // 2 : x + side // 2]


# ---------------------------------------------------------------- from match to detection


def _object_mask(padded: np.ndarray, match: _Match) -> np.ndarray:
    """The foreground inside the match's window: bool, padded."""
    templates = full_templates(match.size)
    side = templates.frame
    mask = np.zeros(padded.shape, bool)
    window = templates.windows[match.label].reshape(side, side) > 0
    _frame_at(mask, match.y, match.x, side)[:] = window & (_frame_at(padded, match.y, match.x, side) > 0.5)
    return mask


def _detection(image: np.ndarray, cover: np.ndarray, match: _Match, mask: np.ndarray) -> Detection:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    inside, pixels = cover[mask], image[mask]
    core = np.partition(inside, -max(1, len(inside) // 3))[-max(1, len(inside) // 3)]  # thin glyphs have no full pixel
    return Detection(CLASSES[match.label], match.score, box, mask, color_name(pixels[inside >= min(0.98, core)]))


def color_name(pixels: np.ndarray) -> str | None:
    """The palette's name for interior pixels (n, 3) with n >= 1, or None where there is no clear one."""
    # Squared distance, less a constant of the pixel: (n, colours).
    distances = np.square(COLOR_VALUES).sum(1) - 2 * pixels.astype(np.float32) @ COLOR_VALUES.T
    median = np.linalg.norm(np.median(pixels, axis=0) - COLOR_VALUES, axis=1)
    best = int(median.argmin())
    agreeing = (distances.argmin(1) == best).mean()
    return COLORS[best] if median[best] <= COLOR_REACH and agreeing >= COLOR_SHARE else None
