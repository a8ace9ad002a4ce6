"""What a training leaves when something is wrong: the rollouts, their images, and a line that
says the mend."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from star.system.errors import StarError, writing
from star.system.files import write_text_atomic

MENDS = {
    "opening": "set model.precision: bf16, which halves the text encoders on a GPU, or use a machine with more memory",
    "prompt encoding": "lower model.t5_tokens, or set model.precision: bf16",
    "rollout": "lower rollout.batch, or set model.vae_slicing: true",
    "reward": "lower rollout.batch or rewards.geneval.batch",
    "update": "set model.gradient_checkpointing: true, or lower rollout.batch",
    "sample grid": "set model.vae_slicing: true",
    "evaluation": "lower evaluate.batch, or set model.vae_slicing: true",
    "scoring": "lower evaluate.batch or rewards.geneval.batch",
}


# A CPU's; CUDA's outside of torch's allocator; cuBLAS's and cuDNN's.
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


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


@contextmanager
def memory_for(phase: str) -> Iterator[None]:
    """Say which phase ran out of memory, and which parameter to lower.

    Raises:
        StarError: in place of the library's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise no_memory(phase, error) from error


def no_memory(phase: str, error: BaseException) -> StarError:
    """What to say of memory that ran out."""
    reason = (str(error).strip() or "no message").splitlines()[0]
    return StarError(f"out of memory in the {phase} phase: {MENDS[phase]} ({reason})")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)
