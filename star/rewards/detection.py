"""The interface of a detector, which the miniature's exact one and a neural one share."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from star.system.errors import StarError

Box = tuple[float, float, float, float]  # (x0, y0, x1, y1) in pixels, y down, far edges exclusive
Colored = Sequence[Collection[str]] | None  # of each image the classes that need colours; None: all


@dataclass(frozen=True)
class Detection:
    """One object found in an image."""

    name: str  # of GenEval's classes
    score: float  # confidence in [0, 1]
    box: Box
    mask: np.ndarray  # bool (height, width) of the whole image
    color: str | None  # of GenEval's ten; None where it is not clear or was not asked for


class DetectionError(StarError):
    """An image could not be judged; ``image`` is its index among those of the call."""

    def __init__(self, image: int, reason: str) -> None:
        super().__init__(reason)
        self.image = image


class Detector(Protocol):
    """Finds objects of the ``classes``; it may leave out what passes no threshold of GenEval."""

    classes: tuple[str, ...]

    def detect(self, images: np.ndarray, colored: Colored = None) -> list[list[Detection]]:
        """Return the detections of each image uint8 (n, height, width, 3), best first.

        Raises:
            DetectionError: an image could not be judged; a failure never becomes an empty list."""
        ...


def mask_box(mask: np.ndarray) -> Box:
    """Return the box around a mask (height, width) that is not empty."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
