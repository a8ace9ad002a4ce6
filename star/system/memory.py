"""Out of memory: a message with the phase that needed it and the parameter to change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from star.system.errors import StarError

MENDS = {
    "opening": "set model.precision: bf16, which halves the text encoders on a GPU, "
    "or use a machine with more memory",
    "prompt encoding": "lower model.t5_tokens, or set model.precision: bf16",
    "rollout": "lower rollout.batch, or set model.vae_slicing: true or train.reuse_rollout: false",
    "reward": "lower rollout.batch or rewards.geneval.batch",
    "update": "set model.gradient_checkpointing: true, or lower rollout.batch",
    "sample grid": "set model.vae_slicing: true",
    "evaluation": "lower evaluate.batch, or set model.vae_slicing: true",
    "scoring": "lower evaluate.batch or rewards.geneval.batch",
}

# A CPU's; CUDA's outside of torch's allocator; cuBLAS's and cuDNN's.
_SIGNS = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


@contextmanager
def memory_for(phase: str) -> Iterator[None]:
    """Raise a StarError that says how to fix it if memory runs out in a phase of `MENDS`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise no_memory(phase, error) from error


def no_memory(phase: str, error: BaseException) -> StarError:
    """Return the message for a phase that ran out of memory."""
    reason = (str(error).strip() or "no message").splitlines()[0]
    return StarError(f"out of memory in the {phase} phase: {MENDS[phase]} ({reason})")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
