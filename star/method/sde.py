"""One denoising step as a Gaussian, and how much likelier a step is under another policy.

Conventions: ``x_s = (1-s) x_0 + s e``; the noise level ``s`` runs from 1 (noise) to 0 (image), so
``dt = s_next - s`` is negative; the velocity is ``v = e - x_0``. All arithmetic is float32 (float64
in, float64 out). Log-ratios are per element and never reduced here: that would erase the location.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

ROUNDING = 1e-5  # of noise levels, which schedulers compute in float32
# Below this std of a trained step a log-ratio says nothing: a mean that moves by 1 % of an image's
# spread makes it +-0.5 an element.
LEAST_STD = 0.01


@dataclass(frozen=True)
class Transition:
    """A step ``x_next ~ N(mean, std^2)``.

    kl_std: by which the published code divides in its KL. Of the SDEs it is ``g``, without the
    length of the step; of `CoefficientsPreserving` it is ``std``.
    """

    mean: Tensor  # like x
    std: float
    kl_std: float

    def sample(self, noise: Tensor) -> Tensor:
        """Return ``x_next`` of standard normal noise, which has the shape of ``mean``."""
        return self.mean + self.std * noise


@dataclass(frozen=True)
class Sampler(ABC):
    """The stochastic steps of one schedule.

    Args:
        sigmas: noise levels of the schedule, steps + 1, falling from about 1 to 0.
        noise_level: ``a``, at least 0; with 0 every step is the ODE's.
    """

    sigmas: Sequence[float]
    noise_level: float

    @abstractmethod
    def transition(self, x: Tensor, velocity: Tensor, t: int) -> Transition:
        """Return step ``t`` from ``x``, latents of any shape; ``velocity`` is like ``x``."""


class MarginalKeeping(Sampler):
    """An SDE with the marginals of the ODE: ``dx = (v - g^2/2 score) ds + g dw``.

    The score is ``-(x + (1-s) v) / s``. Each step is one of Euler and Maruyama.
    """

    @abstractmethod
    def noise_scale(self, t: int) -> float:
        """Return ``g`` at step ``t``."""

    def transition(self, x: Tensor, velocity: Tensor, t: int) -> Transition:
        s, g = self.sigmas[t], self.noise_scale(t)
        dt = self.sigmas[t + 1] - s
        drift = g**2 / (2 * s)
        mean = x * (1 + drift * dt) + velocity * ((1 + drift * (1 - s)) * dt)
        return Transition(mean, g * math.sqrt(-dt), g)


class FlowSDE(MarginalKeeping):
    """Flow-GRPO's SDE (arXiv 2505.05470, Eq. 9): ``g = a sqrt(s / (1-s))``.

    At ``s = 1``, where ``g`` would be infinite, the schedule's second noise level stands in the
    denominator, as in the published code. Some shifts begin a rounding of float32 below 1.
    """

    def noise_scale(self, t: int) -> float:
        s = self.sigmas[t]
        below_one = self.sigmas[1] if s > 1 - ROUNDING else s
        return self.noise_level * math.sqrt(s / (1 - below_one))


class ConstantSDE(MarginalKeeping):
    """DanceGRPO's SDE (arXiv 2505.07818): ``g = a`` at every step."""

    def noise_scale(self, t: int) -> float:
        return self.noise_level


class CoefficientsPreserving(Sampler):
    """Flow-CPS (arXiv 2509.05952): takes out the noise that it adds; ``a`` is at most 1.

    ``x_next = (1-s') x_0 + s' (cos(b) e + sin(b) noise)`` with ``b = a pi / 2`` and the predicted
    ``x_0`` and ``e``: the coefficients stay those of the schedule. Exact for data that is a point.
    For other data the marginals are not the ODE's, because each step replaces predicted noise. The
    log-probability is the Gaussian's (the published code leaves the variance out).
    """

    def transition(self, x: Tensor, velocity: Tensor, t: int) -> Transition:
        s, s_next = self.sigmas[t], self.sigmas[t + 1]
        angle = self.noise_level * math.pi / 2
        clean, noise = x - s * velocity, x + (1 - s) * velocity
        mean = (1 - s_next) * clean + s_next * math.cos(angle) * noise
        std = s_next * math.sin(angle)
        return Transition(mean, std, std)


SAMPLERS: dict[str, type[Sampler]] = {
    "flow_sde": FlowSDE,
    "dance": ConstantSDE,
    "cps": CoefficientsPreserving,
}


def ode_step(x: Tensor, velocity: Tensor, s: float, s_next: float) -> Tensor:
    """Return an Euler step of the probability-flow ODE ``dx/ds = v``."""
    return x + velocity * (s_next - s)


def dpm_step(
    x: Tensor, velocity: Tensor, sigmas: Sequence[float], t: int, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return step ``t`` of DPM-Solver++(2M) (arXiv 2211.01095) and the ``x_0`` it predicts.

    Euler's step in which ``x_0`` goes on as it changed in the step before, over log-SNR
    ``log((1-s)/s)``. The first, second (from pure noise the distance is infinite) and last step
    are Euler's.

    Args:
        before: the ``x_0`` of the step before; None in the first.
    """
    s, s_next = sigmas[t], sigmas[t + 1]
    clean = x - s * velocity
    aim = clean
    if before is not None and s_next > 0 and sigmas[t - 1] < 1:
        last, now, following = (math.log((1 - s) / s) for s in sigmas[t - 1 : t + 2])
        aim = clean + (following - now) / (2 * (now - last)) * (clean - before)
    return s_next / s * x + (1 - s_next / s) * aim, clean


def log_ratio(x_next: Tensor, transition: Transition, old_mean: Tensor, normalised: bool) -> Tensor:
    """Return ``log p(x_next) - log p_old(x_next)`` per element, like ``x_next``.

    The two Gaussians differ only in their means, so this is ``(m - m_old) (2 x - m - m_old) / (2
    std^2)``: exactly 0 at ``m = m_old``, without cancellation near it. ``m`` has gradients.

    Args:
        x_next: drawn from ``N(old_mean, std^2)``.
        normalised: GRPO-Guard's ratio (arXiv 2510.22319). The log-ratio's own mean, ``-(m -
            m_old)^2 / (2 std^2)``, is added back and the rest multiplied by the std. That gives
            ``(m - m_old) noise``: mean 0, and one size at all noise levels.
    """
    moved = transition.mean - old_mean
    if normalised:
        return moved * ((x_next - old_mean) / transition.std)
    return moved * (2 * x_next - transition.mean - old_mean) / (2 * transition.std**2)
