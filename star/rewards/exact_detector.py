"""The miniature's exact detector: templates of its glyphs, matched with a 64x64 image.

1. *Coverage*: how much of a pixel is foreground, of any colour (`star.miniature.templates`), so
   touching objects need no segmentation.
2. *Proposals*: every place, every class, a few sizes, at a quarter of the resolution.
3. *Refinement*: place and size to one pixel at full resolution, by the soft IoU. Its window is the
   template swollen by `templates.RING` pixels, so a neighbour further away costs nothing.
4. *Score* = quality x posterior, as Mask2Former's is mask quality x class probability. Quality is
   ``sigmoid((r - 0.55) / 0.04)``; ``r`` correlates the details (outline, holes, gaps) of image and
   template. The posterior is a softmax of ``IoU / 0.015`` over classes and shapes without a class.

A wobbly, noisy or slightly blurred silhouette keeps a score over 0.9; more distortion lowers it
smoothly. Blobs, halves and mush score under 0.3 in 98, 92 and 85 % of trials. An object under
another, or cut by the edge by more than a few pixels, is usually missed. Things that no prompt
names are matched like classes, and not reported. A background that is no plane in RGB counts as
foreground and hides what stands on it."""

from dataclasses import dataclass
from math import exp
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from star.miniature.templates import (
    COLOR_VALUES,
    MARGIN,
    NAMES,
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
from star.rewards.detection import Colored, Detection, mask_box
from star.system.errors import StarError

MIN_SCORE = 0.05
DETAIL_HALF, DETAIL_SLOPE = 0.55, 0.04  # of the correlation of details
POSTERIOR_SCALE = 0.015  # of the soft IoU
COLOR_REACH = 70.0  # RGB distance to the nearest of the ten; their closest pair is 95 apart
COLOR_SHARE = 0.6  # of the interior pixels that must agree on the colour

_CHUNK = 64  # images searched together
_DIGITS = 5  # by which matches are ordered, equals by place; further ones depend on the batch
_PAD = 10  # background pixels added on each side
_HOPELESS_IOU = 0.55  # after the first refinement: the score could not reach MIN_SCORE
_COARSE_SIZES = (20, 23, 27, 31, 36)
_COARSE_IOU = 0.5
_COARSE_MASS = 0.22  # of its square, at least, is covered by every glyph
_MAX_PROPOSALS = 12  # an image
_SHIFTS = np.array([(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])


class _Pose(NamedTuple):
    """Where a template stands, in padded pixels; a row of the arrays of poses (m, 4)."""

    image: int
    y: int  # of the centre
    x: int
    size: int  # longest side


@dataclass(frozen=True)
class _Match:
    """A refined proposal: its best glyph and the pose of its template."""

    score: float
    label: int  # of `NAMES`
    pose: _Pose

    def explains(self, proposal: _Pose) -> bool:
        """Say whether this is a sure match that stands where the proposal's centre is."""
        away = max(abs(self.pose.y - proposal.y), abs(self.pose.x - proposal.x))
        return self.score > 0.7 and away < 0.35 * self.pose.size


class ExactDetector:
    """Detector of both worlds' sixteen classes; implements `star.rewards.detection.Detector`."""

    classes: tuple[str, ...] = CLASSES

    def detect(self, images: np.ndarray, colored: Colored = None) -> list[list[Detection]]:
        """Return detections in images uint8 (n, 64, 64, 3) that score at least `MIN_SCORE`.

        Raises:
            StarError: images of another size or type."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
            raise StarError(
                f"rewards.geneval.detector: `exact` reads uint8 images of {SIZE}x{SIZE} pixels, "
                f"got {images.dtype} {images.shape}; set model.resolution to {SIZE}"
            )
        chunks = (images[first : first + _CHUNK] for first in range(0, len(images), _CHUNK))
        return [detections for chunk in chunks for detections in _detect(chunk)]


def _detect(images: np.ndarray) -> list[list[Detection]]:
    covers = np.stack([coverage(image) for image in images])
    padded = np.pad(covers, ((0, 0), (_PAD, _PAD), (_PAD, _PAD)))  # (n, side, side)
    details = detail_of(padded)
    waiting = _propose(padded)
    matches: list[list[_Match]] = [[] for _ in padded]
    # Each round refines the next open proposal of every image.
    while turn := [pose for pose in map(_next_proposal, waiting, matches) if pose]:
        for match in _refine(padded, details, np.array(turn)):
            matches[match.pose.image].append(match)
    return [_detections(*found) for found in zip(images, padded, matches, strict=True)]


def _next_proposal(waiting: list[_Pose], matches: list[_Match]) -> _Pose | None:
    """Take proposals off ``waiting`` up to the first that no match explains; return that one."""
    while waiting:
        proposal = waiting.pop(0)
        if not any(match.explains(proposal) for match in matches):
            return proposal
    return None


def _propose(padded: np.ndarray) -> list[list[_Pose]]:
    """Return each image's best coarse poses that are not near a better one, best first."""
    smooth = _means(_means(padded)[:, ::2, ::2])  # of 4x4 pixels, every 2 pixels
    found, peaks = zip(*(_coarse_peaks(smooth, size) for size in _COARSE_SIZES), strict=True)
    poses, iou = np.concatenate(found), np.concatenate(peaks)
    poses = poses[np.lexsort((-iou.round(_DIGITS), poses[:, 0]))]
    proposals: list[list[_Pose]] = [[] for _ in padded]
    for _ in range(_MAX_PROPOSALS):  # each time one from every image
        _, first, owner = np.unique(poses[:, 0], return_index=True, return_inverse=True)
        for row in poses[first].tolist():
            proposals[row[0]].append(_Pose(*row))
        best = poses[first][owner]
        near = np.hypot(*(poses - best)[:, 1:3].T) < 0.25 * np.minimum(poses[:, 3], best[:, 3])
        alike = np.abs(np.log(poses[:, 3] / best[:, 3])) < 0.2
        poses = poses[~(near & alike)]
    return proposals


def _means(fields: np.ndarray) -> np.ndarray:
    """Return the means of 2x2 pixels, every pixel: (n, side - 1, side - 1)."""
    return (fields[:, :-1, :-1] + fields[:, 1:, :-1] + fields[:, :-1, 1:] + fields[:, 1:, 1:]) / 4


def _coarse_peaks(smooth: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return poses (m, 4) of one size that match better than the places around, and their IoU."""
    templates = coarse_templates(size)
    side = templates.frame
    frames = sliding_window_view(smooth, (2 * side - 1,) * 2, (1, 2))  # (n, y, x, side, side)
    views = frames[..., ::2, ::2]
    starts, count = range(0, 2 * side, 2), views.shape[1]
    columns = np.sum([smooth[:, start : start + count] for start in starts], 0)
    mass = np.sum([columns[..., start : start + count] for start in starts], 0)  # of each view
    places = np.nonzero(mass > _COARSE_MASS * (size / 4) ** 2)
    field = np.zeros(views.shape[:3], np.float32)
    field[places] = soft_iou(views[places].reshape(-1, side * side), templates).max(1)
    peaks = (field == ndimage.maximum_filter(field, (1, 3, 3))) & (field > _COARSE_IOU)
    image, row, column = np.nonzero(peaks)
    poses = np.stack([image, 2 * row + 2 * side, 2 * column + 2 * side, np.full(len(row), size)], 1)
    return poses, field[peaks]


def _refine(padded: np.ndarray, details: np.ndarray, poses: np.ndarray) -> list[_Match]:
    """Refine in steps of 2 and then 1 pixel, then score; drop what does not fit."""
    iou, poses = _best_poses(padded, poses, 2, len(NAMES))
    hopeful = iou.max(1) >= _HOPELESS_IOU
    iou, poses = _best_poses(padded, poses[hopeful, iou[hopeful].argmax(1)], 1, SHAPES)
    rows, labels = np.arange(len(iou)), iou[:, : len(NAMES)].argmax(1)
    posteriors = 1 / np.exp((iou - iou[rows, labels, None]) / POSTERIOR_SCALE).sum(1)
    matches = []
    found = (poses[rows, labels].tolist(), labels.tolist(), posteriors.tolist())
    for row, label, posterior in zip(*found, strict=True):
        pose = _Pose(*row)
        templates = full_templates(pose.size)
        patch = _frame_at(details[pose.image], pose, templates.frame)
        agreement = detail_correlation(patch.ravel(), templates, label)
        quality = 1 / (1 + exp((DETAIL_HALF - agreement) / DETAIL_SLOPE))
        matches.append(_Match(round(quality * posterior, _DIGITS), label, pose))
    return [match for match in matches if match.score >= MIN_SCORE]


def _best_poses(
    padded: np.ndarray, poses: np.ndarray, step: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the best of the 27 poses within ``step`` of each pose (m, 4).

    Returns the soft IoU (m, count) of the first ``count`` templates and the poses (m, count, 4)."""
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
        frames = sliding_window_view(padded, (templates.frame,) * 2, (1, 2))
        patches = frames[image, y, x].reshape(-1, templates.frame**2)
        iou[group] = soft_iou(patches, templates, count).reshape(-1, 9, count)
    flat = iou.reshape(-1, 27, count)
    return flat.max(1), tried.reshape(-1, 27, 4)[np.arange(len(poses))[:, None], flat.argmax(1)]


def _frame_at(field: np.ndarray, pose: _Pose, side: int) -> np.ndarray:
    half = side // 2
    return field[pose.y - half : pose.y + half, pose.x - half : pose.x + half]


def _detections(image: np.ndarray, padded: np.ndarray, matches: list[_Match]) -> list[Detection]:
    """Return an image's matches, best first, without those that stand on a better one."""
    taken = np.zeros(padded.shape, bool)
    cover = padded[_PAD:-_PAD, _PAD:-_PAD]
    detections = []
    for match in sorted(matches, key=lambda match: (-match.score, match.pose)):
        whole = _object_mask(padded, match)
        if not whole.any() or (whole & taken).sum() > 0.3 * whole.sum():
            continue
        taken |= whole
        mask = whole[_PAD:-_PAD, _PAD:-_PAD]
        if mask.any() and match.label < len(CLASSES):
            color = color_name(image[mask & _interior(cover, mask)])
            name = NAMES[match.label]
            detections.append(Detection(name, match.score, mask_box(mask), mask, color))
    return detections


def _object_mask(padded: np.ndarray, match: _Match) -> np.ndarray:
    """Return the foreground inside the match's window: bool, padded."""
    templates = full_templates(match.pose.size)
    side = templates.frame
    mask = np.zeros(padded.shape, bool)
    window = templates.windows[match.label].reshape(side, side) > 0
    _frame_at(mask, match.pose, side)[:] = window & (_frame_at(padded, match.pose, side) > 0.5)
    return mask


def _interior(cover: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Say which pixels are full, or at least among the fullest third: thin glyphs have none."""
    inside = cover[mask]
    third = max(1, len(inside) // 3)
    return cover >= min(0.98, np.partition(inside, -third)[-third])


def color_name(pixels: np.ndarray) -> str | None:
    """Return the palette's name for interior pixels (n, 3), n >= 1; None where none is clear."""
    # Squared distance, less a constant of the pixel: (n, colours).
    distances = np.square(COLOR_VALUES).sum(1) - 2 * pixels.astype(np.float32) @ COLOR_VALUES.T
    median = np.linalg.norm(np.median(pixels, axis=0) - COLOR_VALUES, axis=1)
    best = int(median.argmin())
    agreeing = (distances.argmin(1) == best).mean()
    return COLORS[best] if median[best] <= COLOR_REACH and agreeing >= COLOR_SHARE else None
