"""The GPUs of this machine: how many a process may use, which are free, why torch can use none."""

import os
import re
import socket
import struct
from contextlib import suppress
from importlib.metadata import version
from itertools import dropwhile, takewhile
from pathlib import Path

from star.system.errors import StarError, cut
from star.system.runtime import quick_imports

DEVICES = Path("/dev")
WSL_CUDA = Path("/usr/lib/wsl/lib/libcuda.so.1")  # Windows' NVIDIA driver, as WSL2 shows it
# CUDA's, which torch reads on AMD, too; AMD's own.
CHOOSING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
# Of SLURM, PBS, LSF and Grid Engine, whose jobs may each have a GPU 0 of their own.
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
_held: list[socket.socket] = []  # one for each claimed GPU


def visible_gpus() -> int:
    """Count the GPUs that processes may use, from device files: torch would take seconds.

    WSL2 shows one file for all of them. AMD's files and WSL2's are there on laptops that compute
    nothing on them, so they count where this torch, or an NVIDIA driver, is made for them.
    """
    return len(_visible(_devices()))


def _devices() -> list[str]:
    """Return the names of the device files, in the order in which torch most likely counts them."""
    amd = "+rocm" in version("torch")
    numbers = [name for file in DEVICES.glob("nvidia*") if (name := file.name[6:]).isdigit()]
    found = [f"nvidia{number}" for number in sorted(numbers, key=int)]
    if (DEVICES / "dxg").exists() and (amd or WSL_CUDA.exists()):
        found = found or ["dxg"]
    if amd and (DEVICES / "kfd").exists():
        found = max(found, sorted(file.name for file in DEVICES.glob("dri/renderD*")), key=len)
    return found


def _visible(devices: list[str]) -> list[str]:
    """Return the GPUs that the environment leaves, as it calls them: by number, or by UUID."""
    seen = [str(number) for number in range(len(devices))]
    for name in reversed(CHOOSING):
        if name in os.environ:
            # As CUDA does: what follows the first that is none, such as -1, is not seen.
            listed = map(str.strip, os.environ[name].split(","))
            chosen = takewhile(re.compile(r"\d+$|(GPU|MIG)-").match, listed)
            seen = list(chosen)[: len(seen)]
    return seen


def claim_gpus(count: int) -> None:
    """Take the first free GPUs for this process and what it starts; torch will see no others.

    Nothing is done where fewer are visible (`check_gpus` refuses that), where this process has its
    GPUs already, and in the processes of a launcher. A claim is a name in the kernel (an abstract
    socket): unlike a lock file, it needs no folder that all users can write. It outlives `exec`,
    and ends with the process, however that ends.

    Raises:
        StarError: too few are free; their holders are named.
    """
    devices = _devices()
    seen = _visible(devices)
    if _held or "LOCAL_RANK" in os.environ or not 0 < count <= len(seen):
        return
    job = next((os.environ[name] for name in JOBS if name in os.environ), "")
    # By the device file where it can be told: a container may have card 3 as its GPU 0.
    known = {str(number): device for number, device in enumerate(devices)}
    addresses = {gpu: f"\0star {known.get(gpu, gpu)} {job}" for gpu in seen}
    taken: dict[str, socket.socket] = {}
    for gpu, address in addresses.items():
        if len(taken) < count and (claim := _claim(address)):
            taken[gpu] = claim
    if len(taken) < count:
        for claim in taken.values():
            claim.close()
        busy = [f"{gpu}: {_holder(addresses[gpu])}" for gpu in seen if gpu not in taken]
        raise StarError(
            f"GPUs asked for here: {count}, and free are {len(taken)} of {len(seen)} "
            f"({'; '.join(busy)}); wait for one, or stop it first"
        )
    _held.extend(taken.values())
    chooser = next((name for name in CHOOSING if name in os.environ), CHOOSING[0])
    os.environ[chooser] = ",".join(taken)


def _claim(address: str) -> socket.socket | None:
    """Take a name in the kernel; return None if another process has it."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(address)
    except OSError:
        claim.close()
        return None
    claim.listen()  # so that `_holder` can ask whose it is
    claim.set_inheritable(True)  # torchrun takes the place of `star launch`
    return claim


def _holder(address: str) -> str:
    """Return who has a name: its command and process."""
    import psutil

    with suppress(OSError, psutil.Error), socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        asking.connect(address)
        size = struct.calcsize("3i")
        told = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        process, _, _ = struct.unpack("3i", told)  # and its user and group
        words = psutil.Process(process).cmdline()
        ours = dropwhile(lambda word: Path(word).name not in ("star", "star.cli"), words)
        command = " ".join(["star", *list(ours)[1:]])
        return f"{cut(command)} (process {process})"
    return "another process"


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
