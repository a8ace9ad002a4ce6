"""What a training leaves when something is wrong: the rollouts and their images."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from star.system.errors import StarError, writing
from star.system.files import write_text_atomic


class Fault(StarError):
    """Something that must not be trained on.

    Attributes:
        rollouts: JSON-able facts of those concerned (record, prompt, seeds).
        images: one each, uint8 (n, height, width, 3), or None where they do not matter.
    """

    def __init__(
        self, message: str, rollouts: Sequence[dict], images: np.ndarray | None = None
    ) -> None:
        super().__init__(message)
        self.rollouts, self.images = list(rollouts), images


def save_fault(folder: Path, fault: Fault) -> Path:
    """Write ``rollouts.json`` and a PNG of each image to look at; returns the folder."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(() if fault.images is None else fault.images):
            Image.fromarray(image).save(folder / f"{number:03d}.png")
        facts = {"error": str(fault), "rollouts": fault.rollouts}
        write_text_atomic(folder / "rollouts.json", json.dumps(facts, indent=1) + "\n")
    return folder
