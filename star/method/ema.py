"""Exponential moving average of the adapter."""

from collections.abc import Iterable

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
