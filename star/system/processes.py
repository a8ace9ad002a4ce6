"""The processes that train together: each draws, scores and learns from its share of every update's
batches.

What they learn does not depend on how many they are, but for rounding: prompts and noise are
numbered by batch, reward statistics are taken over all processes, and gradients are averaged before
each optimizer step. Groups may lie on several processes."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor

from star.system.errors import StarError

T = TypeVar("T")
WAIT = 1800.0  # seconds that processes wait for one, besides a reward


def start_accelerator(reward_timeout: float) -> Accelerator:
    """This process's accelerator, on a GPU if there is one.

    Args:
        reward_timeout: seconds that a reward may take in one process while the others wait for it.
    """
    waiting = InitProcessGroupKwargs(timeout=timedelta(seconds=reward_timeout + WAIT))
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[waiting])


@contextmanager
def _meeting() -> Iterator[None]:
    """Inside, processes wait for each other; one that waits in vain says so in a line, without its
    own traceback."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise StarError(
            f"another process ended while this one waited for it; its own message says why ({reason})"
        ) from error


@dataclass(frozen=True)
class Processes:
    """This process among ``count``.

    Raises:
        StarError: of every method that waits for the others, where one of them has ended.
    """

    rank: int = 0
    count: int = 1
    accelerator: Accelerator | None = None

    @staticmethod
    def of(accelerator: Accelerator) -> "Processes":
        return Processes(accelerator.process_index, accelerator.num_processes, accelerator)

    def __str__(self) -> str:
        return f"{self.count} process{'es' if self.count > 1 else ''}"

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def shard(self, items: Sequence[T], runs: int) -> list[T]:
        """This process's part of each of ``runs`` equal runs of ``items``, in order."""
        return [items[i] for i in _own_indices(len(items), runs, self.rank, self.count)]

    def gather(self, parts: Sequence[Tensor], runs: int) -> list[Tensor]:
        """What all processes made of their `shard` items, in the order of the items.

        Args:
            parts: one tensor an own item, all of shape (rows, K, ...); K may differ between
                processes and is filled up with zeros.
            runs: as in `shard`.
        """
        if self.accelerator is None or self.count == 1:
            return list(parts)
        stacked = torch.stack(list(parts))
        with _meeting():
            everywhere = self.accelerator.gather(
                self.accelerator.pad_across_processes(stacked, dim=2)
            )
        total = len(everywhere)
        order = [
            i for rank in range(self.count) for i in _own_indices(total, runs, rank, self.count)
        ]
        return [everywhere[order.index(i)] for i in range(total)]

    def table(self, row: Tensor) -> Tensor:
        """The row of every process, (count, len(row)), in the order of their ranks."""
        if self.accelerator is None:
            return row[None]
        with _meeting():
            return self.accelerator.gather(row[None])

    def any(self, value: bool) -> bool:
        """Whether it is true of any process; all must ask."""
        if self.accelerator is None or self.count == 1:
            return value
        with _meeting():
            found = self.accelerator.reduce(
                torch.tensor(float(value), device=self.accelerator.device), "sum"
            )
            return bool(found > 0)

    def barrier(self) -> None:
        """Go on when all have come here."""
        if self.accelerator is not None:
            with _meeting():
                self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one message."""
        if self.accelerator is None or self.count == 1:
            return
        tensors = list(tensors)
        with _meeting():
            mean = self.accelerator.reduce(
                torch.cat([tensor.flatten() for tensor in tensors]), "mean"
            )
        for tensor, part in zip(
            tensors, mean.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(part.view_as(tensor))


ALONE = Processes()


def _own_indices(total: int, runs: int, rank: int, count: int) -> list[int]:
    """Of ``total`` items in ``runs`` equal runs, those of one process: every ``count``-th of each
    run."""
    run = total // runs
    return [start + i for start in range(0, run * runs, run) for i in range(rank, run, count)]
