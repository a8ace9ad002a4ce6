"""The config files of the models that a parameter file names, checked before torch is imported."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from star.config.params import RewardsParams
from star.config.values import read_values
from star.system.errors import StarError

Config = Mapping[str, Any]

SD35_MEDIUM = "stabilityai/stable-diffusion-3.5-medium"
# The libraries have defaults for these keys, which are another model's: they must be in the file.
PIPELINE_KEYS = {
    "transformer": (
        *("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "patch_size"),
        *("joint_attention_dim", "pooled_projection_dim", "pos_embed_max_size"),
    ),
    "vae": ("block_out_channels", "layers_per_block", "latent_channels"),
    "text_encoder": ("hidden_size", "num_hidden_layers", "max_position_embeddings"),
    "text_encoder_2": ("hidden_size", "num_hidden_layers", "max_position_embeddings"),
    "text_encoder_3": ("d_model", "d_ff", "num_layers"),
    "tokenizer": ("model_max_length",),
}
CLIP_KEYS = ("projection_dim", "text_config", "vision_config")
DETECTOR_KEYS = ("backbone_config", "feature_size", "hidden_dim", "feature_strides")


@cache
def known_models() -> dict[str, dict[str, Any]]:
    """Return the configs of the hub ids that are known here, by id."""
    return read_values(Path(__file__).with_name("known_models.yaml"))


def pipeline_configs(path: str) -> Mapping[str, Config] | None:
    """Return the configs of a pipeline's parts, or None of a hub id that is not known.

    Raises:
        StarError: a config file that is missing, broken, or of another model.
    """
    if path in known_models():
        return known_models()[path]
    folder = Path(path)
    if not folder.is_dir():
        return None
    files = {part: folder / part / "config.json" for part in PIPELINE_KEYS}
    files["tokenizer"] = folder / "tokenizer" / "tokenizer_config.json"
    return {
        part: _read(file, PIPELINE_KEYS[part], "model.path", "an SD3 pipeline")
        for part, file in files.items()
    }


def reward_configs(rewards: RewardsParams, task: str) -> dict[str, Config | None]:
    """Return the configs of a task's reward models by path, None of a hub id that is not known.

    Raises:
        StarError: a config file that is missing, broken, or of another model.
    """
    geneval, preference = rewards.geneval, rewards.preference
    if task == "preference":
        return {preference.path: _clip(preference.path, "rewards.preference.path")}
    if task != "geneval" or geneval.detector != "mask2former":
        return {}
    assert geneval.path is not None and geneval.color_path is not None  # the parameters' check
    kind = "a Mask2Former on a Swin"
    return {
        geneval.path: _known(geneval.path, DETECTOR_KEYS, "rewards.geneval.path", kind),
        geneval.color_path: _clip(geneval.color_path, "rewards.geneval.color_path"),
    }


def _clip(path: str, key: str) -> Config | None:
    return _known(path, CLIP_KEYS, key, "a CLIPModel")


def _known(path: str, keys: Sequence[str], parameter: str, kind: str) -> Config | None:
    if path in known_models():
        return known_models()[path]
    return _read(Path(path) / "config.json", keys, parameter, kind) if Path(path).is_dir() else None


def _read(file: Path, keys: Sequence[str], parameter: str, kind: str) -> Config:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StarError(f"{file}: {error}; `star plan` reads {parameter}'s sizes there") from error
    missing = [key for key in keys if not isinstance(config, dict) or key not in config]
    if missing:
        raise StarError(f"{file}: no {missing[0]!r}; is {parameter} {kind}?")
    return config
