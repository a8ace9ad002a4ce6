"""The config files of the models that a parameter file names, checked before torch is imported."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from star.config.params import RewardsParams
from star.config.yaml_file import read_values
from star.system.errors import StarError

Config = dict[str, Any]

SD35_MEDIUM = "stabilityai/stable-diffusion-3.5-medium"


@cache
def _data() -> dict[str, dict[str, Any]]:
    return read_values(Path(__file__).with_name("models.yaml"))


def known_models() -> dict[str, Config]:
    """Return the configs of the hub ids that are known without the hub, by id."""
    return _data()["known"]


def pipeline_configs(path: str) -> Mapping[str, Config] | None:
    """Return the configs of a pipeline's parts, or None for a hub id that is not known.

    Raises:
        StarError: a config file that is missing, broken, or of another model.
    """
    if path in known_models() or not Path(path).is_dir():
        return known_models().get(path)
    kind = "model.path an SD3 pipeline"
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    configs = {part: _read(Path(path, part, "config.json"), part, kind) for part in parts}
    tokenizer = _read(Path(path, "tokenizer", "tokenizer_config.json"), "tokenizer", kind)
    return configs | {"tokenizer": tokenizer}


def reward_configs(rewards: RewardsParams, task: str) -> dict[str, Config | None]:
    """Return the configs of a task's reward models by path, None for a hub id that is not known.

    Raises:
        StarError: a config file that is missing, broken, or of another model.
    """
    detector, colors = rewards.geneval.path, rewards.geneval.color_path
    wanted: list[tuple[str | None, str, str]] = []
    if task == "preference":
        wanted = [(rewards.preference.path, "clip", "rewards.preference.path a CLIPModel")]
    elif task == "geneval":
        wanted = [
            (detector, "mask2former", "rewards.geneval.path a Mask2Former on a Swin"),
            (colors, "clip", "rewards.geneval.color_path a CLIPModel"),
        ]
    found: dict[str, Config | None] = {}
    for path, part, kind in wanted:
        if path is None:  # the exact detector has neither
            continue
        found[path] = known_models().get(path)
        if found[path] is None and Path(path).is_dir():
            found[path] = _read(Path(path, "config.json"), part, kind)
    return found


def _read(file: Path, part: str, kind: str) -> Config:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StarError(f"{file}: {error}; is {kind}? `star plan` reads its sizes there") from error
    for key in _data()["required"][part]:
        if not isinstance(config, dict) or key not in config:
            raise StarError(f"{file}: no {key!r}; is {kind}?")
    return config
