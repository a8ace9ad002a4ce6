"""Forward-process objectives: noise the finished image again, and regress the velocity.

AWM, Advantage Weighted Matching (arXiv 2509.25050), and NFT, DiffusionNFT (arXiv 2509.16117):
towards what good images say, away from what bad ones do. No stochastic sampler, no ratio, no clip.
Spreading the advantage over locations is ours. A loss is the published one and the mean of what
each location adds to it: with maps of ones that is nothing, bit for bit.

Symbols: clean latents ``x_0``, noise ``e``, level ``t``, ``x_t = (1-t) x_0 + t e``, velocity ``v``
and its target ``Y = e - x_0``, that of the policy which drew the image ``v_old``, advantage ``A``,
map ``w``. Shapes: rollouts ``B``, clauses ``K``, locations ``P``.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from star.method.objective import patch_mean

LEAST_ERROR = 1e-5  # below it NFT divides by this


def noised(clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Return ``x_t``, like ``clean`` (B, ...), at ``levels`` (B,)."""
    t = _like(levels, clean)
    return (1 - t) * clean + t * noise


def stratified_levels(sigmas: Sequence[float], count: int, random: np.random.Generator) -> list:
    """Return ``count`` noise levels, one drawn from each equal part of a sampler's schedule.

    Args:
        sigmas: noise levels of the schedule, falling from about 1 to 0; the last is never drawn.
    """
    positions = (np.arange(count) + random.random(count)) / count * (len(sigmas) - 2)
    return np.interp(positions, np.arange(len(sigmas) - 1), sigmas[:-1]).tolist()


def step_levels(sigmas: Sequence[float], count: int, random: np.random.Generator) -> list:
    """Return ``count`` different noise levels of a sampler's steps, as NFT does.

    They fall, so that the maps of another rollout, a control, are of like levels.

    Args:
        sigmas: as in `stratified_levels`; more than ``count``.
    """
    return [sigmas[step] for step in sorted(random.permutation(len(sigmas) - 1)[:count])]


LEVELS: dict[str, Callable[[Sequence[float], int, np.random.Generator], list]] = {
    "stratified": stratified_levels,
    "steps": step_levels,
}


def softly_clipped(advantages: Tensor) -> Tensor:
    """Return V-GRPO's ``3 tanh(A / 3)`` (arXiv 2604.23380), like ``advantages``."""
    return 3 * torch.tanh(advantages / 3)


def awm_loss(
    velocity: Tensor,
    target: Tensor,
    advantages: Tensor,
    weights: Tensor,
    level_scale: bool,
    patch: int,
) -> Tensor:
    """Return AWM's loss without its anchor, ``mean_p A w_p |v - Y|^2_p``: a scalar.

    Args:
        velocity, target: (B, channels, height, width); only ``velocity`` has gradients.
        advantages: (B, K). weights: (B, K, P), of mean 1.
        level_scale: divide by the error's root mean square, of each image and without gradient:
            all levels count alike (ours, by a trial).
        patch: latent pixels along the side of a location.
    """
    error = (velocity - target).square()
    if level_scale:
        error = error / _like(_image_mean(error.detach()).sqrt(), error)
    whole, more = _spread(advantages, weights)
    return (whole * _image_mean(error) + (more * patch_mean(error, patch)).mean(1)).mean()


def nft_loss(
    velocity: Tensor,
    old: Tensor,
    noisy: Tensor,
    clean: Tensor,
    levels: Tensor,
    advantages: Tensor,
    weights: Tensor,
    limit: float,
    beta: float,
    patch: int,
) -> Tensor:
    """Return NFT's loss without its anchor, as its code has it: a scalar.

    ``limit [r l(v+) + (1-r) l(v-)] / beta`` with ``v+ = b v + (1-b) v_old``, ``v- = (1+b) v_old - b
    v`` and `clean_error` ``l``. A location has the ``r`` of its share ``w_p A``, and its own ``l``.

    Args:
        velocity, old, noisy, clean: ``v, v_old, x_t, x_0``, (B, channels, height, width); only
            ``velocity`` has gradients. levels: (B,).
        advantages: (B, K). weights: (B, K, P), of mean 1.
        limit: advantage from which on a location is all good, or all bad.
        beta: ``b``, how far the two policies lie from the old one.
        patch: latent pixels along the side of a location.
    """
    good = clean_error(beta * velocity + (1 - beta) * old, noisy, clean, levels)
    bad = clean_error((1 + beta) * old - beta * velocity, noisy, clean, levels)
    whole, more = _spread(advantages, weights)
    r, r_p = optimality(whole, limit), optimality(whole[:, None] + more, limit)
    image = r * _image_mean(good) / beta + (1 - r) * _image_mean(bad) / beta
    local = (r_p - r[:, None]) * (patch_mean(good, patch) - patch_mean(bad, patch)) / beta
    return ((image + local.mean(1)) * limit).mean()


def optimality(advantages: Tensor, limit: float) -> Tensor:
    """Return NFT's ``r``, the chance in [0, 1] that an image is a good one, like ``advantages``."""
    return (advantages.clamp(-limit, limit) / (2 * limit) + 0.5).clamp(0, 1)


def clean_error(velocity: Tensor, noisy: Tensor, clean: Tensor, levels: Tensor) -> Tensor:
    """Return NFT's squared error of the ``x_0`` that a velocity predicts, like ``velocity``.

    ``(x_0(v) - x_0)^2 / W`` with ``x_0(v) = x_t - t v``; ``W`` is the mean of ``|x_0(v) - x_0|``
    over the image, at least `LEAST_ERROR`, without gradient.
    """
    error = noisy - _like(levels, noisy) * velocity - clean
    size = _image_mean(error.detach().abs()).clamp_min(LEAST_ERROR)
    return error.square() / _like(size, error)


def old_share(updates: int, wait: int, rate: float, most: float) -> float:
    """Return the share of NFT's old policy that stays after an epoch, its ``eta``.

    ``min(rate (updates - wait), most)``, and 0 until ``wait``.

    Args:
        updates: optimizer steps since the training's start.
    """
    return min(rate * max(updates - wait, 0), most)


def _spread(advantages: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the advantage of an image (B,), and what each location has beyond it (B, P).

    That is ``sum_k A_k (w_{k,p} - 1)``: 0, bit for bit, where maps are 1.
    """
    return advantages.sum(1), torch.einsum("bk,bkp->bp", advantages, weights - 1)


def _image_mean(values: Tensor) -> Tensor:
    return values.mean((1, 2, 3))  # (B,)


def _like(each: Tensor, images: Tensor) -> Tensor:
    return each.view(-1, *[1] * (images.dim() - 1))
