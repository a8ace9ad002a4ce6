"""What a detector is: the interface that the miniature's exact detector and a neural one share."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Detection:
    """One object found in a picture.

    Attributes:
        name: GenEval class name.
        score: confidence in [0, 1].
        box: (x0, y0, x1, y1) in pixels, x to the right, y down, the far edges exclusive.
        mask: bool (height, width) of the whole picture.
        color: GenEval colour name, or None where it cannot be told.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray
    color: str | None


class Detector(Protocol):
    """Finds objects; scores are not yet thresholded by the benchmark's rules.

    ``classes`` names every class that it can report.
    """

    classes: tuple[str, ...]

    def detect(self, images: np.ndarray) -> list[list[Detection]]:
        """Detections of each picture, best first.

        Args:
            images: uint8 (n, height, width, 3).
        """
        ...
