"""What is the same in opening any published model: all of it is there and finite, or it is refused in one line."""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError

from star.errors import StarError
from star.faults import is_out_of_memory, no_memory

# What transformers, diffusers and safetensors raise for a directory that does not open.
OPENING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def check_loaded(model: torch.nn.Module, report: Mapping[str, Any]) -> None:
    """Refuse a model that its file does not fill: the libraries would go on with random numbers.

    Args:
        report: what the library says of the loading (``output_loading_info=True``).

    Raises:
        ValueError: weights that are missing, of another shape, or not finite; names the first.
    """
    missing = sorted(set(report["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, the first is {missing[0]}")
    for name, found, wanted in sorted(report["mismatched_keys"]):
        raise ValueError(f"{name} has the shape {tuple(found)}, and {tuple(wanted)} by the configuration")
    for name, weight in model.named_parameters():
        # A number that is not finite shows in the extremes, which are found twenty times faster than by looking at all.
        if not torch.stack(torch.aminmax(weight)).isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")


def cannot_open(what: str, path: str, key: str, error: Exception) -> StarError:
    """The one-line error for a model directory that does not open."""
    if is_out_of_memory(error):
        return no_memory("opening", error)
    reason = " ".join(str(error).split()).split(". ")[0]  # after the first sentence libraries give advice of their own
    return StarError(
        f"{key} {path!r}: cannot be opened as a {what} ({reason}); give a whole one, with safetensors weights"
    )
