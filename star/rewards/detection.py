"""What a detector is: the interface that the miniature's exact detector and a neural one share."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from star.system.errors import StarError


@dataclass(frozen=True)
class Detection:
    """One object found in an image.

    Attributes:
        name: GenEval class name.
        score: confidence in [0, 1].
        box: (x0, y0, x1, y1) in pixels, x to the right, y down, the far edges exclusive.
        mask: bool (height, width) of the whole image.
        color: GenEval colour name, or None where it cannot be told or was not asked for.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray
    color: str | None


class DetectionError(StarError):
    """An image could not be judged; ``image`` is its index among those of the call."""

    def __init__(self, image: int, reason: str) -> None:
        super().__init__(reason)
        self.image = image


class Detector(Protocol):
    """Finds objects; the benchmark's thresholds come later, but what can pass none of them may be
    left out.

    ``classes`` names every class that it can report.
    """

    classes: tuple[str, ...]

    def detect(
        self, images: np.ndarray, colored: Sequence[Collection[str]] | None = None
    ) -> list[list[Detection]]:
        """Detections of each image, best first.

        Args:
            images: uint8 (n, height, width, 3).
            colored: of each image the classes whose colours are asked for (None: all); others may
                be left out.

        Raises:
            DetectionError: an image could not be judged; a failure never becomes an empty list.
        """
        ...
