"""The miniature's exact detector: template matching against the glyphs that `star.miniature.world`
draws.

How it works, in pixels of a 64x64 image:

1. *Coverage.* The background is the median of the frame's rim. A pixel's colour minus the
   background is projected on the ray towards each palette colour; the length along the nearest ray
   is its coverage in [0, 1], so a soft edge of any colour counts alike, and touching objects need
   no segmentation. Coverage is sharpened about 1/2 and slightly blurred, and so are the templates:
   a shape that is off by a fraction of a pixel still matches.
2. *Proposals.* Every place, every class, a few sizes, at a quarter of the resolution. 3.
*Refinement.* Place and size to one pixel at full resolution, by the soft IoU (Tanimoto coefficient)
   ``I = <A, T> / (|T|^2 + |A|^2_W - <A, T>)``; the window ``W`` is the template swollen by
   `templates.RING` pixels, so a neighbour further away costs nothing.
4. *Score* = quality x posterior, the form of Mask2Former's (mask quality x class probability).
   Quality is ``sigmoid((r - 0.55) / 0.04)``, where ``r`` correlates the details of image and
   template (outline, holes, gaps: each less its Gaussian blur) inside the window: 0.5 at r = 0.55,
   0.9 at 0.64. The posterior is a softmax of ``I / 0.015`` over classes and shapes without a class
   (disc, ellipses, boxes). One place gets one name, the best: an ambiguous shape is never two
   objects.

How it fails on malformed images. A wobbly, noisy or slightly blurred silhouette that a person
names at once keeps a score over 0.9; further distortion lowers the score smoothly: at a wobble of 1
pixel rms about half of the two-object images keep both objects over 0.9, nine in ten over 0.3.
Blobs, halves of glyphs and glyphs blurred to mush (sigma an eighth of the size) score under 0.3 in
98, 92 and 85 % of trials; what remains is a canopy without its stick (still an umbrella), a truck's
lower half (a car), a round blob with a notch (an apple). A clock without hands is a disc, so it is
nothing. An object under another, or cut by the image's edge by more than a few pixels, is usually
missed. A background that is not flat is read as foreground and hides what stands on it. Colour is
the palette's entry nearest to the interior's median, and None when that is far from all ten or when
too little of the interior agrees: a two-coloured cat is a cat of no colour."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import exp
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from star.miniature.templates import (
    COLOR_VALUES,
    MARGIN,
    SHAPES,
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
from star.system.errors import StarError

MIN_SCORE = 0.05
DETAIL_HALF, DETAIL_SLOPE = 0.55, 0.04  # of the correlation of details
POSTERIOR_SCALE = 0.015  # of the soft IoU
COLOR_REACH = 70.0  # RGB distance beyond which a colour is none of the ten; the palette's closest pair is 95 apart
COLOR_SHARE = 0.6  # of the interior pixels that must agree on the colour

_CHUNK = 64  # images searched at once
_DIGITS = 5  # that count where matches are ordered, equals by place: further ones depend on the batch's size
_PAD = 10  # background pixels added on each side
_HOPELESS_IOU = 0.55  # after the first refinement: the score could not reach MIN_SCORE
_COARSE_SIZES = (20, 23, 27, 31, 36)
_COARSE_IOU = 0.5
_MAX_PROPOSALS = 12  # an image
_SHIFTS = np.array([(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])


class _Pose(NamedTuple):
    """Where a template stands: image, centre and longest side in padded pixels; a row of the
    arrays of poses."""

    image: int
    y: int
    x: int
    size: int


@dataclass(frozen=True)
class _Match:
    """A refined proposal: its best class and the pose of its template."""

    score: float
    label: int
    pose: _Pose


class ExactDetector:
    """Detector of the miniature's sixteen silhouettes; implements
    `star.rewards.detection.Detector`."""

    classes: tuple[str, ...] = CLASSES

    def detect(
        self, images: np.ndarray, colored: Sequence[Collection[str]] | None = None
    ) -> list[list[Detection]]:
        """Detections of each image with a score of at least `MIN_SCORE`, best first.

        Args:
            images: uint8 (n, 64, 64, 3).
            colored: makes no difference here: every object has its colour.

        Raises:
            StarError: images of another size or type.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
            raise StarError(
                f"rewards.geneval.detector: `exact` reads uint8 images of {SIZE}x{SIZE} pixels, got {images.dtype} "
                f"{images.shape}; set model.resolution to {SIZE}"
            )
        chunks = (images[first : first + _CHUNK] for first in range(0, len(images), _CHUNK))
        return [detections for chunk in chunks for detections in _detect(chunk)]


def _detect(images: np.ndarray) -> list[list[Detection]]:
    padded = np.pad(
        np.stack([coverage(image) for image in images]), ((0, 0), (_PAD, _PAD), (_PAD, _PAD))
    )
    return [_detections(*found) for found in zip(images, padded, _search(padded), strict=True)]


# ---------------------------------------------------------------- search, in all images (n, side,


def _search(padded: np.ndarray) -> list[list[_Match]]:
    """Each image's matches, in rounds; a round refines the next proposal of every image that
    has one left."""
    details = detail_of(padded)
    waiting = _propose(padded)
    matches: list[list[_Match]] = [[] for _ in padded]
    while turn := [pose for pose in map(_next_proposal, waiting, matches) if pose]:
        for match in _refine(padded, details, np.array(turn)):
            matches[match.pose.image].append(match)
    return matches


def _next_proposal(waiting: list[_Pose], matches: list[_Match]) -> _Pose | None:
    """Takes proposals off ``waiting`` up to the first that no sure match explains, and returns
    that."""
    while waiting:
        proposal = waiting.pop(0)
        if not any(_explains(match, proposal) for match in matches):
            return proposal
    return None


def _explains(match: _Match, proposal: _Pose) -> bool:
    """Whether a sure match already stands where the proposal's centre is."""
    pose, reach = match.pose, 0.35 * match.pose.size
    return (
        match.score > 0.7 and abs(pose.y - proposal.y) < reach and abs(pose.x - proposal.x) < reach
    )


def _propose(padded: np.ndarray) -> list[list[_Pose]]:
    """Each image's local maxima of the coarse match over places and sizes, best first."""
    smooth = _means(_means(padded)[:, ::2, ::2])  # of 4x4 pixels, every 2 pixels
    poses, peaks = zip(*(_coarse_peaks(smooth, size) for size in _COARSE_SIZES), strict=True)
    return _local_maxima(np.concatenate(poses), np.concatenate(peaks), len(padded))


def _means(fields: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels, every pixel: (n, side - 1, side - 1)."""
    return (fields[:, :-1, :-1] + fields[:, 1:, :-1] + fields[:, :-1, 1:] + fields[:, 1:, 1:]) / 4


def _coarse_peaks(smooth: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Poses (m, 4) of one size that match better than the places next to them, and their soft
    IoU."""
    templates = coarse_templates(size)
    side = templates.frame
    views = _frames(smooth, 2 * side - 1)[..., ::2, ::2]
    starts, count = range(0, 2 * side, 2), views.shape[1]
    columns = np.sum([smooth[:, start : start + count] for start in starts], 0)
    mass = np.sum(
        [columns[..., start : start + count] for start in starts], 0
    )  # as views.sum((3, 4)), but faster
    places = np.nonzero(mass > 0.22 * (size / 4) ** 2)  # no glyph covers less of its square
    field = np.zeros(views.shape[:3], np.float32)
    field[places] = soft_iou(views[places].reshape(-1, side * side), templates).max(1)
    peaks = (field == ndimage.maximum_filter(field, (1, 3, 3))) & (field > _COARSE_IOU)
    image, row, column = np.nonzero(peaks)
    poses = np.stack([image, 2 * row + 2 * side, 2 * column + 2 * side, np.full(len(row), size)], 1)
    return poses, field[peaks]


def _local_maxima(poses: np.ndarray, iou: np.ndarray, images: int) -> list[list[_Pose]]:
    """Each image's best poses that are not near a better one; every step takes one from every
    image."""
    poses = poses[np.lexsort((-iou.round(_DIGITS), poses[:, 0]))]
    proposals: list[list[_Pose]] = [[] for _ in range(images)]
    for _ in range(_MAX_PROPOSALS):
        _, first, owner = np.unique(poses[:, 0], return_index=True, return_inverse=True)
        for row in poses[first].tolist():
            proposals[row[0]].append(_Pose(*row))
        best = poses[first][owner]
        close = np.hypot(*(poses - best)[:, 1:3].T) < 0.25 * np.minimum(poses[:, 3], best[:, 3])
        poses = poses[~(close & (np.abs(np.log(poses[:, 3] / best[:, 3])) < 0.2))]
    return proposals


def _refine(padded: np.ndarray, details: np.ndarray, poses: np.ndarray) -> list[_Match]:
    """Place and size at full resolution, in steps of 2 and then 1 pixel, then the score; drops what
    does not fit."""
    iou, poses = _best_poses(padded, poses, 2, len(CLASSES))
    hopeful = iou.max(1) >= _HOPELESS_IOU
    iou, poses = _best_poses(padded, poses[hopeful, iou[hopeful].argmax(1)], 1, SHAPES)
    rows, labels = np.arange(len(iou)), iou[:, : len(CLASSES)].argmax(1)
    posteriors = 1 / np.exp((iou - iou[rows, labels, None]) / POSTERIOR_SCALE).sum(1)
    found = zip(poses[rows, labels].tolist(), labels.tolist(), posteriors.tolist(), strict=True)
    matches = [_match(details, _Pose(*pose), label, posterior) for pose, label, posterior in found]
    return [match for match in matches if match.score >= MIN_SCORE]


def _match(details: np.ndarray, pose: _Pose, label: int, posterior: float) -> _Match:
    templates = full_templates(pose.size)
    patch = _frame_at(details[pose.image], pose, templates.frame)
    agreement = detail_correlation(patch.ravel(), templates, label)
    quality = 1 / (1 + exp((DETAIL_HALF - agreement) / DETAIL_SLOPE))
    return _Match(round(quality * posterior, _DIGITS), label, pose)


def _best_poses(
    padded: np.ndarray, poses: np.ndarray, step: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Best of the 27 poses within ``step`` of each pose (m, 4), for each of the first ``count``
    templates.

    Returns the soft IoU (m, count) and the poses (m, count, 4).
    """
    sizes = poses[:, 3:] + step * np.array([0, -1, 1])  # (m, 3)
    halves = sizes[..., None] // 2 + MARGIN  # of the frames
    centres = np.clip(poses[:, None, 1:3], halves + step, padded.shape[1] - halves - step)
    tried = np.empty((len(poses), 3, 9, 4), int)
    tried[..., 0], tried[..., 3] = poses[:, :1, None], sizes[..., None]
    tried[..., 1:3] = centres[:, :, None] + step * _SHIFTS
    corners = tried[..., 1:3] - halves[..., None]
    iou = np.empty((len(poses), 3, 9, count), np.float32)
    for size in np.unique(sizes):  # all images together
        templates, group = full_templates(int(size)), sizes == size
        (y, x), image = np.moveaxis(corners[group], 2, 0), tried[group, :, 0]
        patches = _frames(padded, templates.frame)[image, y, x].reshape(-1, templates.frame**2)
        iou[group] = soft_iou(patches, templates, count).reshape(-1, 9, count)
    flat = iou.reshape(-1, 27, count)
    return flat.max(1), tried.reshape(-1, 27, 4)[np.arange(len(poses))[:, None], flat.argmax(1)]


def _frames(fields: np.ndarray, side: int) -> np.ndarray:
    """Views of all frames in contiguous fields (n, height, width), by image and corner: (n, y, x,
    side, side)."""
    count, height, width = fields.shape
    strides = fields.strides + fields.strides[1:]  # cheaper than `sliding_window_view`
    return np.ndarray(
        (count, height - side + 1, width - side + 1, side, side), fields.dtype, fields, 0, strides
    )


def _frame_at(field: np.ndarray, pose: _Pose, side: int) -> np.ndarray:
    half = side // 2
    return field[pose.y - half : pose.y + half, pose.x - half : pose.x + half]


# ---------------------------------------------------------------- from match to detection


def _detections(image: np.ndarray, padded: np.ndarray, matches: list[_Match]) -> list[Detection]:
    """An image's matches, best first, without those that stand on a better one."""
    taken = np.zeros(padded.shape, bool)
    detections = []
    for match in sorted(matches, key=lambda m: (-m.score, m.pose)):
        mask = _object_mask(padded, match)
        if not mask.any() or (mask & taken).sum() > 0.3 * mask.sum():
            continue
        taken |= mask
        inside = mask[_PAD:-_PAD, _PAD:-_PAD]
        if inside.any():
            detections.append(_detection(image, padded[_PAD:-_PAD, _PAD:-_PAD], match, inside))
    return detections


def _object_mask(padded: np.ndarray, match: _Match) -> np.ndarray:
    """The foreground inside the match's window: bool, padded."""
    templates = full_templates(match.pose.size)
    side = templates.frame
    mask = np.zeros(padded.shape, bool)
    window = templates.windows[match.label].reshape(side, side) > 0
    _frame_at(mask, match.pose, side)[:] = window & (_frame_at(padded, match.pose, side) > 0.5)
    return mask


def _detection(image: np.ndarray, cover: np.ndarray, match: _Match, mask: np.ndarray) -> Detection:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    inside, pixels = cover[mask], image[mask]
    core = np.partition(inside, -max(1, len(inside) // 3))[
        -max(1, len(inside) // 3)
    ]  # thin glyphs have no full pixel
    return Detection(
        CLASSES[match.label], match.score, box, mask, color_name(pixels[inside >= min(0.98, core)])
    )


def color_name(pixels: np.ndarray) -> str | None:
    """The palette's name for interior pixels (n, 3) with n >= 1, or None where there is no clear
    one."""
    # Squared distance, less a constant of the pixel: (n, colours).
    distances = np.square(COLOR_VALUES).sum(1) - 2 * pixels.astype(np.float32) @ COLOR_VALUES.T
    median = np.linalg.norm(np.median(pixels, axis=0) - COLOR_VALUES, axis=1)
    best = int(median.argmin())
    agreeing = (distances.argmin(1) == best).mean()
    return COLORS[best] if median[best] <= COLOR_REACH and agreeing >= COLOR_SHARE else None
