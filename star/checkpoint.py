"""Atomic state on disk: tensors as safetensors, the rest as JSON; no pickle is written or read."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from star.errors import StarError


def save_state(path: Path, tensors: dict[str, torch.Tensor], facts: dict) -> None:
    """One state file: tensors and JSON-able facts together, so that they cannot disagree. Atomic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    packed = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(packed, temporary, metadata={"facts": json.dumps(facts, sort_keys=True)})
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Inverse of `save_state`.

    Raises:
        StarError: the file is truncated or is not such a state.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 (not a dict)
    except Exception as error:
        raise StarError(f"{path}: not a readable training state ({error}); delete it to start over") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, torch.Tensor]:
    """The optimizer's per-parameter state as a flat dict of tensors."""
    return {
        f"{prefix}{index}.{name}": torch.as_tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], prefix: str) -> None:
    """Inverse of `optimizer_tensors`, into an optimizer over the same parameters in the same order."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            index, name = key[len(prefix) :].split(".", 1)
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
