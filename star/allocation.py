"""From the attention that image tokens pay to the core of the prompt to unit-mean allocation maps.

STAR (arXiv 2606.17979) allocates one group-relative advantage over locations and steps by such maps; the
normalisations are our reconstruction (README, Method, D2, D3, D5). Shapes: rollouts ``B``, steps ``T``, locations
``P``, core tokens ``C``.
"""

import math

import torch
from torch import Tensor


def relevance_map(mass: Tensor, token_weights: Tensor) -> Tensor:
    """Attention mass per core token -> one relevance map (D2).

    Each token's map is divided by its own mean over locations first, so that a small object's map survives a big one's.

    Args:
        mass: (B, P, C), probability that location ``p`` puts on core token ``c``.
        token_weights: (B, C), at least 0; 0 marks padding.

    Returns:
        (B, P), at least 0, mean 1 over locations.
    """
    per_token = mass / mass.mean(1, keepdim=True).clamp_min(1e-12)
    return torch.einsum("bpc,bc->bp", per_token, token_weights) / token_weights.sum(1, keepdim=True)


def allocation_weights(relevance: Tensor, lam: float, smoothing: float, temporal: str) -> Tensor:
    """Relevance maps -> allocation maps of mean 1 (D3, D5): ``w = (1 + lam a) / mean(1 + lam a)``.

    ``a`` is the (optionally smoothed) relevance, min-max scaled per map, or over all steps of a rollout for ``joint``.

    Args:
        relevance: (B, T, P), locations row-major on a square grid.
        lam: strength; 0 gives ones.
        smoothing: sigma of a Gaussian, in locations; 0 for none.
        temporal: ``per_step`` (unit mean at each step) or ``joint`` (unit mean over all steps and locations).
    """
    over = (2,) if temporal == "per_step" else (1, 2)
    smooth = gaussian_smooth(relevance, smoothing) if smoothing else relevance
    low, high = smooth.amin(over, keepdim=True), smooth.amax(over, keepdim=True)
    a = (smooth - low) / (high - low).clamp_min(1e-12)
    raised = 1 + lam * a
    return raised / raised.mean(over, keepdim=True)


def gaussian_smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian filter over the square grid of the last axis; weights are renormalised at the border."""
    side = math.isqrt(maps.shape[-1])
    distance = torch.arange(side, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-((distance[:, None] - distance[None, :]) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum(1, keepdim=True)  # (side, side): row i weighs the neighbours of i
    grid = maps.unflatten(-1, (side, side))
    return (kernel @ grid @ kernel.T).flatten(-2)


def normalised_entropy(weights: Tensor) -> Tensor:
    """Entropy of the maps as distributions over locations, divided by that of a flat one: in [0, 1], mean over maps."""
    p = weights / weights.sum(-1, keepdim=True)
    return (torch.special.entr(p).sum(-1) / math.log(weights.shape[-1])).mean()
