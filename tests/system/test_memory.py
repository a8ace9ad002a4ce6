"""Memory that ran out: the phase, and what to lower."""

import pytest
import torch

from star.system.errors import StarError
from star.system.memory import MENDS, memory_for

ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried"),
    MemoryError(),
    RuntimeError("can't allocate memory"),
    RuntimeError("CUDA error: out of memory\nCompile with"),
)


@pytest.mark.parametrize("phase", MENDS)
def test_running_out_of_memory_names_the_phase_and_what_to_lower(phase):
    for error in ERRORS:
        message = f"out of memory in the {phase} phase: .*(lower|set) "
        with pytest.raises(StarError, match=message), memory_for(phase):
            raise error
    with pytest.raises(RuntimeError, match="shapes"), memory_for(phase):
        raise RuntimeError("shapes do not match")
