"""The folder of a LoRA adapter: its files, and whether they belong to a base model.

Two forms are read: diffusers' (ours), and PEFT's, in which Flow-GRPO and DiffusionNFT publish. What
is written has its strength, alpha / rank, in the B matrices: programs that do not read alpha draw
the same images.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import SD3Transformer2DModel
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError, safe_open
from torch import Tensor

from star.config.params import ModelParams
from star.system.errors import StarError

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
BASE_FILE = "base.json"  # next to an adapter: what it was trained on
SPECIAL = ("alpha_pattern", "use_rslora", "use_dora")  # PEFT's settings that change the strength


def adapter_file(adapter: Path) -> Path:
    """Return the file of weights in an adapter's folder; `StarError` if it holds none."""
    for name in (ADAPTER_FILE, PEFT_FILE):
        if (adapter / name).is_file():
            return adapter / name
    raise StarError(
        f"{adapter}: no {ADAPTER_FILE} (diffusers) or {PEFT_FILE} (PEFT) in it; give the adapter "
        "folder of a finished training"
    )


@dataclass(frozen=True)
class Adapter:
    """An adapter as it was read.

    weights: under diffusers' keys, `folded`. config: LoRA's rank, alpha and layers; None if the
    files do not say them.
    """

    file: Path
    weights: dict[str, Tensor]
    config: dict[str, Any] | None


def read_adapter(adapter: Path) -> Adapter:
    """Read the adapter in a folder, in either form.

    Raises:
        StarError: no such adapter, an unreadable file, or a strength that is not alpha / rank.
    """
    file = adapter_file(adapter)
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            header = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
        config = {key.removeprefix("transformer."): value for key, value in header.items()}
        if file.name == PEFT_FILE:
            config = json.loads((adapter / PEFT_CONFIG).read_text(encoding="utf-8"))
            old, new = "base_model.model.", "transformer."
            tensors = {key.replace(old, new, 1): value for key, value in tensors.items()}
        if special := [key for key in SPECIAL if config.get(key)]:
            raise StarError(f"{file}: {special[0]} is not supported; merge or convert it with PEFT")
        stated = full_strength(config) if config else None
        strength = config["lora_alpha"] / config["r"] if config else 1.0
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise StarError(f"{file}: not a readable LoRA adapter ({error})") from error
    return Adapter(file, folded(tensors, strength), stated)


def folded(tensors: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
    """Return LoRA weights with ``strength`` multiplied into the B matrices."""
    return {key: value * strength if ".lora_B." in key else value for key, value in tensors.items()}


def full_strength(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rank and the layers of a LoRA configuration, for weights that are `folded`."""
    rank, layers = config["r"], sorted(config["target_modules"])
    return {"r": rank, "lora_alpha": rank, "target_modules": layers}


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


def check_base(adapter: Path, base: str, model: ModelParams) -> None:
    """Refuse an adapter that says that its base had another `base_fingerprint` than ``base``."""
    file = adapter / BASE_FILE
    if not file.exists():  # made elsewhere
        return
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        path, revision, known = said["path"], said["revision"], said["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StarError(
            f"{file}: does not say which base the adapter was trained on ({error!r}); delete the "
            "file if you know that it was this one"
        ) from error
    if known != base:
        pinned = f" at {revision}" if revision else ""
        raise StarError(
            f"{adapter}: trained on another base, {path}{pinned}, and not on {model.path}; set "
            "model.path and model.revision to that base"
        )


def check_layers(adapter: Adapter, transformer: SD3Transformer2DModel) -> None:
    """Refuse an adapter, loaded into ``transformer``, with keys other than its layers'.

    diffusers passes over such keys with a warning. What is left of the adapter may be the base
    model alone.
    """
    found = set(adapter.weights)
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
            f"{adapter.file}: {len(unknown)} keys belong to no layer of the transformer "
            f"({_some(unknown)}), and {len(missing)} are missing ({_some(missing)}); give the file "
            "as `star train` or diffusers' `save_lora_weights` wrote it"
        )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:2]) or "none"
