"""Opening published models for a reward: safetensors only, no code from the hub, and never a half-filled model."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from star.errors import StarError
from star.hub import DESCRIPTIONS, WEIGHTS, model_folder
from star.opening import OPENING_ERRORS, cannot_open, check_loaded


def find_model(kind: type[PreTrainedModel], path: str, revision: str | None, key: str) -> tuple[Path, PretrainedConfig]:
    """The directory of a transformers model, fetched if it is a hub id, and its configuration; no weight is read.

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
        raise StarError(f"{key} {path!r}: config.json is missing; it is not a transformers model directory")
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
    """A transformers model in float32, for inference, from a directory or hub id; the arguments are `find_model`'s.

    Raises:
        StarError: what `find_model` refuses, or weights that are missing, of another shape or not finite.
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
