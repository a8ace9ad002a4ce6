"""The folder of a LoRA adapter: its files, and whether they belong to a base model."""

import hashlib
import json
from pathlib import Path

from diffusers import SD3Transformer2DModel
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import safe_open

from star.config.params import ModelParams
from star.system.errors import StarError

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
BASE_FILE = "base.json"  # next to an adapter: what it was trained on


def check_adapter(adapter: Path) -> None:
    """Refuse a folder that holds no adapter, before a model is opened for it."""
    if not (adapter / ADAPTER_FILE).is_file():
        raise StarError(
            f"{adapter}: no {ADAPTER_FILE} in it; give the adapter folder of a finished training"
        )


def base_fingerprint(transformer: SD3Transformer2DModel) -> str:
    """Return a digest of the configuration and the beginning of each weight; adapters do not count.

    It is the same wherever the base lies.
    """
    config = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    weights = {
        name.replace(".base_layer", ""): weight
        for name, weight in transformer.named_parameters()
        if ".lora_" not in name
    }
    for _, weight in sorted(weights.items()):
        digest.update(weight.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_base(adapter: Path, transformer: SD3Transformer2DModel, model: ModelParams) -> None:
    """Refuse an adapter that says that it was trained on another base than ``transformer``."""
    file = adapter / BASE_FILE
    if not file.exists():  # made elsewhere
        return
    try:
        base = json.loads(file.read_text(encoding="utf-8"))
        path, revision, known = base["path"], base["revision"], base["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StarError(
            f"{file}: does not say which base the adapter was trained on ({error!r}); delete the "
            "file if you know that it was this one"
        ) from error
    if known != base_fingerprint(transformer):
        pinned = f" at {revision}" if revision else ""
        raise StarError(
            f"{adapter}: trained on another base, {path}{pinned}, and not on {model.path}; set "
            "model.path and model.revision to that base"
        )


def check_layers(adapter: Path, transformer: SD3Transformer2DModel) -> None:
    """Refuse an adapter, loaded into ``transformer``, with keys other than its layers'.

    diffusers passes over such keys with a warning. What is left of the adapter may be the base
    model alone.
    """
    file = adapter / ADAPTER_FILE
    with safe_open(file, framework="pt") as opened:
        found = set(opened.keys())
    configs = getattr(transformer, "peft_config", {}).values()
    wanted = {
        f"transformer.{layer}.lora_{side}.weight"
        for layer, _ in transformer.named_modules()
        if any(check_target_module_exists(config, layer) for config in configs)
        for side in "AB"
    }
    unknown, missing = sorted(found - wanted), sorted(wanted - found)
    if unknown or missing:
        raise StarError(
            f"{file}: {len(unknown)} keys belong to no layer of the transformer "
            f"({_some(unknown)}), and {len(missing)} are missing ({_some(missing)}); give the file "
            "as `star train` or diffusers' `save_lora_weights` wrote it"
        )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:2]) or "none"
