"""The GPUs of this machine: how many processes may use, and why torch can use none."""

import os
import re
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path

from star.system.errors import StarError
from star.system.runtime import quick_imports

DEVICES = Path("/dev")
WSL_CUDA = Path("/usr/lib/wsl/lib/libcuda.so.1")  # Windows' NVIDIA driver, as WSL2 shows it
# CUDA's, which torch reads on AMD, too; AMD's own.
CHOOSING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def visible_gpus() -> int:
    """Count the GPUs that processes may use, from device files: torch would take seconds.

    WSL2 shows one file for all of them. AMD's files and WSL2's are there on laptops that compute
    nothing on them, so they count where this torch, or an NVIDIA driver, is made for them.
    """
    amd = "+rocm" in version("torch")
    found = len([file for file in DEVICES.glob("nvidia*") if file.name[6:].isdigit()])
    if (DEVICES / "dxg").exists() and (amd or WSL_CUDA.exists()):
        found = max(found, 1)
    if amd and (DEVICES / "kfd").exists():
        found = max(found, len(list(DEVICES.glob("dri/renderD*"))))
    for name in CHOOSING:
        if name in os.environ:
            # As CUDA does: what follows the first that is none, such as -1, is not seen.
            listed = map(str.strip, os.environ[name].split(","))
            chosen = takewhile(re.compile(r"\d+$|(GPU|MIG)-").match, listed)
            found = min(found, len(list(chosen)))
    return found


def check_gpus(asked: int) -> None:
    """Refuse GPUs that torch cannot use, with its own reason.

    Args:
        asked: of this machine.

    Raises:
        StarError: torch cannot use a GPU, or has fewer.
    """
    if asked < 1:
        return
    with quick_imports():
        import torch
    if reason := why_unusable():
        raise StarError(
            f"GPUs asked for here: {asked}, and torch can use none ({reason}); mend that, or run "
            "on the CPU: CUDA_VISIBLE_DEVICES= make run (with a profile gpu: 0, by hand --gpus 0)"
        )
    if (count := torch.cuda.device_count()) < asked:
        raise StarError(f"GPUs asked for here: {asked}, and torch finds {count}; ask for {count}")


def why_unusable() -> str | None:
    """Return why torch computes on no GPU, in its own words, or None if it does.

    A driver that is too old, a torch that is built for the CPU, and a GPU that it has no code for
    show when something is computed.
    """
    import torch

    try:
        (torch.ones(1, device="cuda") + 1).item()
    except (AssertionError, RuntimeError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None
