"""Other values of the adapter: its exponential moving average, and how they are lent to it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """Flow-GRPO's average (arXiv 2505.05470): decay ``min((1 + n) / (10 + n), decay)``.

    ``n`` counts the updates; every ``every``-th enters, and ``values`` are like the parameters.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float, every: int) -> None:
        self.values = [parameter.detach().clone() for parameter in parameters]
        self.decay, self.every = decay, every

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor], updates: int) -> None:
        """Take in the parameters after an update, of which this is number ``updates``, from 1."""
        if updates % self.every:
            return
        decay = min((1 + updates) / (10 + updates), self.decay)
        torch._foreach_lerp_(self.values, list(parameters), 1 - decay)


@contextmanager
def lent(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Give the parameters other values inside, and their own again afterwards."""
    own = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), list(values))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), own)
