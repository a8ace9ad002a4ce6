"""Published models: found or fetched, checked, and opened whole or refused.

Only safetensors weights are read, no code of a model is run, and nothing is left at random."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from star.system.errors import StarError
from star.system.hub import DESCRIPTIONS, WEIGHTS, check_weights, model_folder, refuse_quantised
from star.system.memory import is_out_of_memory, no_memory

# What transformers, diffusers and safetensors raise for a directory that does not open.
OPENING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def find_model(
    kind: type[PreTrainedModel], path: str, revision: str | None, key: str
) -> tuple[Path, PretrainedConfig]:
    """Return a transformers model's directory and configuration; no weight is read.

    Args:
        kind: class of the model.
        path: directory, or hub id, which is fetched.
        revision: commit of a hub id; None for its newest.
        key: parameter that holds ``path``, for messages.

    Raises:
        StarError: there is no such model, it is of another kind, or it has no safetensors weights.
    """
    folder = model_folder(path, revision, key, DESCRIPTIONS)
    if not (folder / "config.json").is_file():
        raise StarError(
            f"{key} {path!r}: config.json is missing; it is not a transformers model directory"
        )
    where = f"{key} {path!r}: it"
    refuse_quantised(folder, where)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if not isinstance(config, kind.config_class):
            raise ValueError(f"it is a {config.model_type}")
    except OPENING_ERRORS as error:
        raise cannot_open(kind.__name__, path, key, error) from error
    folder = model_folder(path, revision, key, (*DESCRIPTIONS, *WEIGHTS))
    check_weights(folder, where, path, revision)
    return folder, config


def open_model(kind: type[PreTrainedModel], path: str, revision: str | None, key: str) -> Any:
    """Return a transformers model in float32 for inference; the arguments are `find_model`'s.

    Raises:
        StarError: what `find_model` refuses, or a model that `check_loaded` refuses.
    """
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


def check_loaded(model: torch.nn.Module, report: Mapping[str, Any]) -> None:
    """Refuse a model that its file does not fill: the libraries would go on with random numbers.

    Args:
        report: the library's account of the loading (``output_loading_info=True``).

    Raises:
        ValueError: weights are missing, of another shape, or not finite; the first is named.
    """
    missing = sorted(set(report["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, the first is {missing[0]}")
    for name, found, wanted in sorted(report["mismatched_keys"]):
        shapes = f"the shape {tuple(found)}, and {tuple(wanted)} by the configuration"
        raise ValueError(f"{name} has {shapes}")
    for name, weight in model.named_parameters():
        # The extremes show a number that is not finite, twenty times faster than all numbers.
        if not torch.stack(torch.aminmax(weight)).isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")


def cannot_open(what: str, path: str, key: str, error: Exception) -> StarError:
    """Return the one-line error for a model directory that does not open."""
    if is_out_of_memory(error):
        return no_memory("opening", error)
    # After the first sentence, libraries give advice of their own.
    reason = " ".join(str(error).split()).split(". ")[0]
    return StarError(
        f"{key} {path!r}: cannot be opened as a {what} ({reason}); "
        "give a whole one, with safetensors weights"
    )
