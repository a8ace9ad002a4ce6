"""Forward-process objectives: noise the finished image again, and regress the velocity.

AWM, Advantage Weighted Matching (arXiv 2509.25050): towards what good images say, away from what
bad ones do. No stochastic sampler, no ratio, no clip. Spreading the advantage over locations is
ours: with maps of ones it is AWM.

Symbols: clean latents ``x_0``, noise ``e``, level ``t``, ``x_t = (1-t) x_0 + t e``, velocity ``v``
and its target ``Y = e - x_0``, that of the policy which drew the image ``v_old``, advantage ``A``,
map ``w``. Shapes: rollouts ``B``, clauses ``K``, locations ``P``.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from star.method.objective import patch_mean


def noised(clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Return ``x_t``, like ``clean`` (B, ...), at ``levels`` (B,)."""
    t = levels.view(-1, *[1] * (clean.dim() - 1))
    return (1 - t) * clean + t * noise


def stratified_levels(sigmas: Sequence[float], count: int, random: np.random.Generator) -> list:
    """Return ``count`` noise levels, one drawn from each equal part of a sampler's schedule.

    Args:
        sigmas: noise levels of the schedule, falling from about 1 to 0; the last is never drawn.
    """
    positions = (np.arange(count) + random.random(count)) / count * (len(sigmas) - 2)
    return np.interp(positions, np.arange(len(sigmas) - 1), sigmas[:-1]).tolist()


def awm_loss(
    velocity: Tensor,
    old: Tensor,
    target: Tensor,
    advantages: Tensor,
    weights: Tensor,
    anchor: float,
    patch: int,
) -> tuple[Tensor, Tensor]:
    """Return the loss and the mean squared drift ``|v - v_old|^2``, detached; both scalars.

    ``mean_p A w_p |v - Y|^2_p / rms(v - Y) + anchor |v - v_old|^2``. The error's root mean square,
    of each image and without gradient, makes all levels count alike (ours, by a trial).

    Args:
        velocity, old, target: (B, channels, height, width); only ``velocity`` has gradients.
        advantages: (B, K). weights: (B, K, P), of mean 1.
        patch: latent pixels along the side of a location.
    """
    error = patch_mean((velocity - target).square(), patch)  # (B, P)
    scale = error.detach().mean(1, keepdim=True).sqrt()
    local = torch.einsum("bk,bkp->bp", advantages, weights)
    drift = (velocity - old).square().mean()
    return (local * error / scale).mean() + anchor * drift, drift.detach()
