"""Measure the memory of this process, and a card's own rate."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from star.method.precision import AUTOCAST_DTYPES
from star.training.trainer import Trainer

MATRIX = 8192  # side of the matrices whose product gives a card's own rate


def machine() -> str:
    gpu = torch.cuda.is_available()
    name = (
        torch.cuda.get_device_name()
        if gpu
        else f"{platform.machine()}, {os.cpu_count()} cores, no accelerator"
    )
    return f"{name}, torch {torch.__version__}"


def measure_peak(work: Callable[[], object], gpu: bool) -> dict[str, float]:
    """Return the memory of this process now and at its highest during ``work``, in bytes.

    On a GPU it is its allocator's. The kernel's high-water mark is set back first, or it would show
    the loading of the model.
    """
    if gpu:
        loaded = float(torch.cuda.memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        work()
        return {"loaded": loaded, "peak": float(torch.cuda.max_memory_allocated())}
    Path("/proc/self/clear_refs").write_text("5")
    loaded = resident("VmRSS")
    work()
    return {"loaded": loaded, "peak": resident("VmHWM")}


def resident(field: str) -> float:
    """Read a field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(field))) * 1024


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def matrix_rate(device: torch.device, side: int = MATRIX, precision: str = "bf16") -> float:
    """Return operations/s of a product of two square matrices; a multiply-add counts as two."""
    dtype = AUTOCAST_DTYPES.get(precision, torch.float32)
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)

    def work() -> None:
        torch.matmul(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()

    best = min(seconds(work) for _ in range(20))
    return 2 * side**3 / best


def use_of_card(run: Trainer, images: int) -> dict[str, float]:
    """Return images/s of rollout and update, and the update's share of the card's matrix rate."""
    lines = [run.train_epoch() for _ in range(4)][1:]
    rollout, update = (min(line.seconds[name] for line in lines) for name in ("rollout", "update"))
    return {
        "rollout_images_per_s": images / rollout,
        "update_images_per_s": images / update,
        "matrix_share": matrix_share(run, update),
    }


def matrix_share(run: Trainer, update: float) -> float:
    """Return the share of the card's own matrix rate in an update of ``update`` seconds."""
    with FlopCounterMode(display=False) as all_operations:
        run.train_epoch()
    with FlopCounterMode(display=False) as of_rollout:
        run.sample(run.plan.batches(run.epoch)[0])
    operations = all_operations.get_total_flops() - of_rollout.get_total_flops()
    return operations / update / matrix_rate(run.policy.device)
