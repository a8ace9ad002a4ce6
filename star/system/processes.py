"""The processes that train together: each samples, scores and learns from its shard of the batches.

Except for rounding, what they learn does not depend on their number. Prompts and noise are numbered
by batch, statistics of rewards are taken over all processes, and gradients are averaged before each
optimizer step. Groups may lie on several processes."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, all_reduce, new_group

from star.system.errors import StarError

T = TypeVar("T")
WAIT = 1800.0  # seconds that processes wait for one, in addition to a reward


def start_accelerator(reward_timeout: float) -> Accelerator:
    """Return this process's accelerator, on a GPU if there is one.

    Args:
        reward_timeout: seconds that a reward may take in one process while the others wait for it.
    """
    waiting = InitProcessGroupKwargs(timeout=_patience(reward_timeout))
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[waiting])


def device_name(device: torch.device) -> str:
    """Return a device as a user knows it: ``cpu``, or ``cuda (NVIDIA H200)``."""
    gpu = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return device.type + gpu


def _patience(reward_timeout: float) -> timedelta:
    return timedelta(seconds=reward_timeout + WAIT)


@contextmanager
def _meeting(group: ProcessGroup | None) -> Iterator[None]:
    """Raise a StarError if this process waits for the others in vain.

    They meet on the CPU first. Of a process that has ended, an exchange between GPUs never learns:
    it would hang until the launcher kills this process too, its work unsaved.
    """
    try:
        if group is not None:
            all_reduce(torch.zeros(1), group=group)
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        told = "another process ended while this one waited for it; its own message says why"
        raise StarError(f"{told} ({reason})") from error


@dataclass(frozen=True)
class Processes:
    """This process among ``count``; they meet in ``group``, on the CPU.

    Raises:
        StarError: of every method that waits for the others, where one of them has ended.
    """

    rank: int = 0
    count: int = 1
    accelerator: Accelerator | None = None
    group: ProcessGroup | None = None

    @staticmethod
    def of(accelerator: Accelerator, reward_timeout: float) -> "Processes":
        """Return this process as its accelerator knows it; all call this together."""
        rank, count = accelerator.process_index, accelerator.num_processes
        group = None
        if count > 1:
            group = new_group(backend="gloo", timeout=_patience(reward_timeout))
        return Processes(rank, count, accelerator, group)

    def __str__(self) -> str:
        device = device_name(self.accelerator.device if self.accelerator else torch.device("cpu"))
        return f"{self.count} process{'es' if self.count > 1 else ''} on {device}"

    @property
    def main(self) -> bool:
        """Tell whether this is the process that writes files and logs."""
        return self.rank == 0

    def shard(self, items: Sequence[T], runs: int) -> list[T]:
        """Return this process's items: every ``count``-th of each of ``runs`` equal runs."""
        run = len(items) // runs
        return [
            item
            for start in range(0, run * runs, run)
            for item in items[start : start + run][self.rank :: self.count]
        ]

    def gather(self, parts: Sequence[Tensor], runs: int) -> list[Tensor]:
        """Return what all processes made of their shards, in the order of all items.

        Args:
            parts: one tensor for each item of the shard, all of shape (rows, K, ...); K may differ
                between processes and is filled up with zeros.
            runs: as in `shard`.
        """
        if self.accelerator is None or self.count == 1:
            return list(parts)
        stacked = torch.stack(list(parts))
        with _meeting(self.group):
            padded = self.accelerator.pad_across_processes(stacked, dim=2)
            everywhere = self.accelerator.gather(padded)
        items = range(len(everywhere))
        ranks = [Processes(rank, self.count) for rank in range(self.count)]
        order = [item for process in ranks for item in process.shard(items, runs)]
        return [everywhere[order.index(item)] for item in items]

    def table(self, row: Tensor) -> Tensor:
        """Return the row of every process, (count, len(row)), in the order of their ranks."""
        if self.accelerator is None:
            return row[None]
        with _meeting(self.group):
            return self.accelerator.gather(row[None])

    def any(self, value: bool) -> bool:
        """Return whether it is true of any process; all must ask."""
        if self.group is None:
            return value
        flag = torch.tensor(float(value))
        with _meeting(None):
            all_reduce(flag, ReduceOp.MAX, self.group)
        return bool(flag)

    def barrier(self) -> None:
        """Go on when all processes have come here."""
        if self.accelerator is not None:
            with _meeting(self.group):
                self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one message."""
        if self.accelerator is None or self.count == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _meeting(self.group):
            mean = self.accelerator.reduce(flat, "mean")
        parts = mean.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


ALONE = Processes()
