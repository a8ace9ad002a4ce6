"""Opens published models: safetensors only, no code from the hub, all complete and finite, or
refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from star.system.errors import StarError
from star.system.hub import DESCRIPTIONS, WEIGHTS, model_folder
from star.system.memory import is_out_of_memory, no_memory

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
        raise ValueError(
            f"{name} has the shape {tuple(found)}, and {tuple(wanted)} by the configuration"
        )
    for name, weight in model.named_parameters():
        # A number that is not finite shows in the extremes, which are found twenty times faster
        # than by looking at all.
        if not torch.stack(torch.aminmax(weight)).isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")


def cannot_open(what: str, path: str, key: str, error: Exception) -> StarError:
    """The one-line error for a model directory that does not open."""
    if is_out_of_memory(error):
        return no_memory("opening", error)
    reason = " ".join(str(error).split()).split(". ")[
        0
    ]  # after the first sentence libraries give advice of their own
    return StarError(
        f"{key} {path!r}: cannot be opened as a {what} ({reason}); give a whole one, with safetensors weights"
    )


def find_model(
    kind: type[PreTrainedModel], path: str, revision: str | None, key: str
) -> tuple[Path, PretrainedConfig]:
    """The directory of a transformers model, fetched if it is a hub id, and its configuration; no
    weight is read.

    Args:
        kind: its class.
        path: directory or hub id.
        revision: commit of a hub id; None for its newest.
        key: the parameter that holds ``path``, for messages.

    Raises:
        StarError: there is no such model, it is of another kind, or it has no safetensors weights.
    """
    folder = model_folder(path, revision, key, DESCRIPTIONS)
    if not (folder / "config.json").is_file():
        raise StarError(
            f"{key} {path!r}: config.json is missing; it is not a transformers model directory"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if not isinstance(config, kind.config_class):
            raise ValueError(f"it is a {config.model_type}")
    except OPENING_ERRORS as error:
        raise cannot_open(kind.__name__, path, key, error) from error
    folder = model_folder(path, revision, key, (*DESCRIPTIONS, *WEIGHTS))
    if not list(folder.glob("*.safetensors")):
        raise StarError(f"{key} {path!r}: no .safetensors weights (pickled weights are not loaded)")
    return folder, config


def open_model(kind: type[PreTrainedModel], path: str, revision: str | None, key: str) -> Any:
    """A transformers model in float32, for inference, from a directory or hub id; the arguments are
    `find_model`'s.

    Raises:
        StarError: what `find_model` refuses, or weights that are missing, of another shape or not
    finite."""
    folder, config = find_model(kind, path, revision, key)
    try:
        model, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the library would not say which; `check_loaded` does
        )
        check_loaded(model, report)
    except OPENING_ERRORS as error:
        raise cannot_open(kind.__name__, path, key, error) from error
    return model.eval().requires_grad_(False)
