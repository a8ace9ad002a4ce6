"""One denoising step as a Gaussian transition, and its log-probability.

Conventions: ``x_s = (1-s) x_0 + s e``; the noise level ``s`` runs from 1 (noise) to 0 (picture), so ``dt = s_next - s``
is negative; the velocity is ``v = e - x_0``. All arithmetic is float32 (float64 in, float64 out). Log-probabilities are
per element and never reduced here: a reduction would erase the location.
"""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Transition:
    """``x_next ~ N(mean, (noise_scale * sqrt(step))^2)``; ``step = -dt`` is positive."""

    mean: Tensor  # like x
    noise_scale: float  # std of the SDE, per unit of sqrt(time)
    step: float

    @property
    def deviation(self) -> float:
        return self.noise_scale * math.sqrt(self.step)


def flow_sde_transition(
    x: Tensor, velocity: Tensor, s: float, s_next: float, noise_level: float, s_second: float
) -> Transition:
    """The flow SDE of Flow-GRPO (arXiv 2505.05470, Eq. 9): same marginals as the ODE, noise scale ``a sqrt(s/(1-s))``.

    Args:
        x: latents at noise level ``s``, any shape.
        velocity: predicted ``e - x_0``, like ``x``.
        s, s_next: noise levels, ``1 >= s > s_next >= 0``.
        noise_level: ``a``, at least 0.
        s_second: the schedule's second noise level; stands in for ``s`` in the denominator at ``s = 1``, where the
        noise
            scale would be infinite (as in the published code).
    """
    dt = s_next - s
    std = noise_level * math.sqrt(s / (1 - (s_second if s == 1 else s)))
    drift = std**2 / (2 * s)
    mean = x * (1 + drift * dt) + velocity * ((1 + drift * (1 - s)) * dt)
    return Transition(mean, std, -dt)


def ode_step(x: Tensor, velocity: Tensor, s: float, s_next: float) -> Tensor:
    """Euler step of the probability-flow ODE ``dx/ds = v``."""
    return x + velocity * (s_next - s)


def sample_transition(transition: Transition, noise: Tensor) -> Tensor:
    """``x_next`` from standard normal noise of the same shape."""
    return transition.mean + transition.deviation * noise


def log_prob(x_next: Tensor, transition: Transition) -> Tensor:
    """Log-density of ``x_next``, per element, like ``x_next``; gradients flow through the mean."""
    deviation = transition.deviation
    error = x_next - transition.mean
    return -(error**2) / (2 * deviation**2) - math.log(deviation) - 0.5 * math.log(2 * math.pi)
