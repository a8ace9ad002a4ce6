"""Opening published models for a reward: safetensors only, no code from the hub, and never a half-filled model."""

from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel

from star.errors import StarError

# What transformers and safetensors raise for a path, revision or file that cannot be opened.
OPENING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def open_model(kind: type[PreTrainedModel], path: str, revision: str | None, key: str) -> Any:
    """A transformers model in float32, for inference, from a directory or hub id.

    Args:
        kind: its class.
        path: directory or hub id.
        revision: commit of a hub id; None for its newest.
        key: the parameter that holds ``path``, for messages.

    Raises:
        StarError: there is no such model, it is of another kind, or its file lacks weights, which transformers would
            fill with random numbers.
    """
    try:
        config = AutoConfig.from_pretrained(path, revision=revision or "main", trust_remote_code=False)
        if not isinstance(config, kind.config_class):
            raise ValueError(f"it is a {config.model_type}")
        model, report = kind.from_pretrained(
            path,
            config=config,
            revision=revision or "main",
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
        missing = sorted(set(report["missing_keys"]) & {name for name, _ in model.named_parameters()})
        if missing:
            raise ValueError(f"{len(missing)} weights are missing, the first is {missing[0]}")
    except OPENING_ERRORS as error:
        raise cannot_open(kind.__name__, path, key, error) from error
    return model.eval().requires_grad_(False)


def cannot_open(what: str, path: str, key: str, error: Exception) -> StarError:
    """The one-line error for a model that does not open."""
    reason = str(error).strip().split("\n")[0]
    return StarError(
        f"{key} {path!r}: cannot be opened as a {what} ({reason}); give a directory or a hub id with safetensors "
        f"weights, and where there is no network or a licence to accept, download it beforehand"
    )
