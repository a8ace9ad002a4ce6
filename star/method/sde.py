"""One denoising step as a Gaussian transition, and how much likelier a step is under another
policy.

Conventions: ``x_s = (1-s) x_0 + s e``; the noise level ``s`` runs from 1 (noise) to 0 (image), so
``dt = s_next - s`` is negative; the velocity is ``v = e - x_0``. All arithmetic is float32 (float64
in, float64 out). Log-ratios are per element and never reduced here: a reduction would erase the
location."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

ROUNDING = 1e-5  # of noise levels, which schedulers compute in float32


@dataclass(frozen=True)
class Transition:
    """``x_next ~ N(mean, deviation^2)`` with ``deviation = noise_scale * sqrt(step)``; ``step =
    -dt`` is positive."""

    mean: Tensor  # like x
    noise_scale: float  # std of the SDE, per unit of sqrt(time)
    step: float

    @property
    def deviation(self) -> float:
        return self.noise_scale * math.sqrt(self.step)


def flow_sde(
    x: Tensor, velocity: Tensor, s: float, s_next: float, noise_level: float, s_second: float
) -> Transition:
    """The flow SDE of Flow-GRPO (arXiv 2505.05470, Eq. 9): same marginals as the ODE, noise scale
    ``a sqrt(s/(1-s))``.

    Args:
        x: latents at noise level ``s``, any shape.
        velocity: predicted ``e - x_0``, like ``x``.
        s, s_next: noise levels, ``1 >= s > s_next > 0``.
        noise_level: ``a``, at least 0.
        s_second: the schedule's second noise level; stands in for ``s`` in the denominator at ``s =
            1``, where the noise scale would be infinite (as in the published code). Some shifts
            make a first level that is off 1 by a rounding of float32.
    """
    below_one = s_second if s > 1 - ROUNDING else s
    return _marginal_keeping(x, velocity, s, s_next, noise_level * math.sqrt(s / (1 - below_one)))


def constant_sde(
    x: Tensor, velocity: Tensor, s: float, s_next: float, noise_level: float, s_second: float
) -> Transition:
    """The SDE of DanceGRPO (arXiv 2505.07818): same marginals as the ODE, the same noise scale
    ``a`` at every step.

    Arguments as of `flow_sde`; ``s_second`` is not used.
    """
    return _marginal_keeping(x, velocity, s, s_next, noise_level)


def _marginal_keeping(
    x: Tensor, velocity: Tensor, s: float, s_next: float, noise_scale: float
) -> Transition:
    """Euler-Maruyama step of ``dx = (v - g^2/2 score) ds + g dw``, where the score is ``-(x + (1-s)
    v) / s``."""
    dt = s_next - s
    drift = noise_scale**2 / (2 * s)
    mean = x * (1 + drift * dt) + velocity * ((1 + drift * (1 - s)) * dt)
    return Transition(mean, noise_scale, -dt)


def preserving_step(
    x: Tensor, velocity: Tensor, s: float, s_next: float, noise_level: float, s_second: float
) -> Transition:
    """Coefficients-preserving sampling of Flow-CPS (arXiv 2509.05952): the noise that is added is
    taken out first.

    ``x_next = (1 - s') x_0 + s' (cos(b) e + sin(b) noise)`` with ``b = a pi / 2`` and the predicted
    ``x_0`` and ``e``: the image's and the noise's coefficients stay those of the schedule. Exact
    for data that is a point. For other data the marginals are not those of the ODE, because a share
    of the predicted noise is replaced at every step.

    Arguments as of `flow_sde`; ``noise_level`` is at most 1, ``s_second`` is not used. Its
    log-probability is that of the Gaussian (the published code leaves the variance out)."""
    angle = noise_level * math.pi / 2
    clean, noise = x - s * velocity, x + (1 - s) * velocity
    mean = (1 - s_next) * clean + s_next * math.cos(angle) * noise
    return Transition(mean, s_next * math.sin(angle) / math.sqrt(s - s_next), s - s_next)


SAMPLERS: dict[str, Callable[[Tensor, Tensor, float, float, float, float], Transition]] = {
    "flow_sde": flow_sde,
    "dance": constant_sde,
    "cps": preserving_step,
}


def ode_step(x: Tensor, velocity: Tensor, s: float, s_next: float) -> Tensor:
    """Euler step of the probability-flow ODE ``dx/ds = v``."""
    return x + velocity * (s_next - s)


def sample_transition(transition: Transition, noise: Tensor) -> Tensor:
    """``x_next`` from standard normal noise of the same shape."""
    return transition.mean + transition.deviation * noise


def log_ratio(x_next: Tensor, transition: Transition, old_mean: Tensor, normalised: bool) -> Tensor:
    """``log p(x_next) - log p_old(x_next)`` per element, like ``x_next``; gradients flow through
    the transition's mean.

    The two Gaussians differ in their means alone, so this is ``(m - m_old) (2 x - m - m_old) / (2
    deviation^2)``: exactly 0 at ``m = m_old`` and free of cancellation near it.

    Args:
        x_next: what was drawn from ``N(old_mean, deviation^2)``.
        normalised: GRPO-Guard's ratio (arXiv 2510.22319): the log-ratio's own mean, ``-(m -
            m_old)^2 / (2 deviation^2)``, is added back and the rest is multiplied by the deviation,
            which gives ``(m - m_old) noise``: mean 0, and of one size at all noise levels.
    """
    moved = transition.mean - old_mean
    if normalised:
        return moved * ((x_next - old_mean) / transition.deviation)
    return moved * (2 * x_next - transition.mean - old_mean) / (2 * transition.deviation**2)
