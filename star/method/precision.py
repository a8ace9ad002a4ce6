"""`model.precision`: the type of the transformer's products, and what `auto` is on a device.

A CPU without bfloat16 instructions emulates it: on an AVX2 machine a product of matrices ran at 0.6
GFLOP/s, in float32 at 55. So the miniature, which has to run anywhere, asks for `auto`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Capabilities of x86 processors on which bf16 was seen to be the faster type, or is by
# construction. ARM's is left out: it was never tried.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return ``no`` (float32), ``bf16`` or ``fp16``; `auto` is bf16 where the device has it."""
    if precision != "auto":
        return precision
    return "bf16" if _has_bf16(device) else "no"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return a context that computes in a `model.precision`."""
    dtype = AUTOCAST_DTYPES.get(resolve_precision(precision, device))
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def hold_products(module: torch.nn.Module, precision: str) -> None:
    """Hold the weights of `frozen_products` in the type to which autocast casts them at each use.

    So a weight is rounded once, and what is computed under `autocast` stays the same to the bit.

    Args:
        precision: a `model.precision` other than `auto`; "no" changes nothing.
    """
    if dtype := AUTOCAST_DTYPES.get(precision):
        for layer in frozen_products(module):
            layer.to(dtype)


def frozen_products(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the linear layers and convolutions other than LoRA's.

    Autocast leaves the rest alone (norms, the position table), and LoRA is trained in float32.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) and ".lora_" not in name:
            yield layer


def computing(precision: str) -> dict[str, str]:
    """Return the kind of this process's device, and what ``precision`` is on it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"device": device.type, "precision": resolve_precision(precision, device)}


def set_tf32(allowed: bool) -> None:
    """Let a GPU compute float32 products and convolutions in TF32 (10 bits of mantissa), or not.

    Holds for all of the process. Without a GPU nothing changes: "high" may mean another type to a
    CPU.
    """
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute float32 products and convolutions in float32 inside, whatever `set_tf32` says."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        return any(found.get(name, False) for name in _BF16_INSTRUCTIONS)
    return False
