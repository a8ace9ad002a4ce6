"""What an algorithm does in an epoch: draw rollouts, and give the loss of each trained step."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from star.config.params import AllocationParams, Params
from star.method.attention import CoreKeys
from star.policy.sd3 import SD3Policy
from star.system.processes import Processes
from star.training.batches import Batch


class Rollouts(Protocol):
    """A drawn batch: ``B`` images, ``T`` trained steps or noise levels, ``K`` clauses.

    images: uint8 (B, height, width, 3). relevance: (B, T, K, P); None where no maps are used.
    """

    @property
    def images(self) -> np.ndarray: ...
    @property
    def relevance(self) -> Tensor | None: ...
    @property
    def steps(self) -> int: ...


@dataclass(frozen=True)
class Scored:
    """A batch with its credit. advantages: (B, K); weights: allocation maps (B, T, K, P); factors:
    (B,), of the rollouts in the means of an update's loss, all 1 unless `train.zero_advantage` is
    drop.

    An algorithm that reads maps in its training pass writes them into ``weights`` then.
    """

    batch: Batch
    trajectory: Rollouts
    advantages: Tensor
    weights: Tensor
    factors: Tensor


@dataclass(frozen=True)
class Term:
    """The loss of one trained step of a batch, and figures of `LogLine`: scalars.

    A figure that was not measured is NaN.
    """

    loss: Tensor
    figures: Mapping[str, Tensor]


class Algorithm(ABC):
    """One value of `train.algorithm`."""

    def __init__(
        self, params: Params, allocation: AllocationParams, policy: SD3Policy, processes: Processes
    ) -> None:
        self.params, self.allocation = params, allocation
        self.policy, self.processes = policy, processes

    @abstractmethod
    def draw(self, batch: Batch, epoch: int, core: CoreKeys | None) -> Rollouts:
        """Draw the rollouts of a batch.

        Args:
            core: core tokens of each prompt; None if the allocation needs no maps.

        Raises:
            NotFinite: an image is not finite.
        """

    @abstractmethod
    def term(self, item: Scored, row: int, logged: bool) -> Term:
        """Return the loss of trained step ``row``, a mean over rollouts and locations.

        Args:
            logged: whether to measure what is only measured once an epoch.
        """

    def check(self, epoch: int, first: Sequence[Term]) -> dict[str, Tensor]:
        """Return figures of the terms before an epoch's first optimizer step."""
        return {}

    def follow(self, updates: int) -> None:  # noqa: B027 (most have nothing to do)
        """End an epoch, after ``updates`` optimizer steps since the training's start."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what the next epochs depend on besides the adapter; a resume writes into them."""
        return {}
