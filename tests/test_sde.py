"""The flow SDE: closed forms against float64, torch.distributions, and what noise level 0 must give."""

import math

import pytest
import torch

from star.sde import flow_sde_transition, log_prob, ode_step, sample_transition


def reference_mean_and_deviation(x, v, s, s_next, a):
    """An independent derivation: SDE drift = ODE velocity + (g^2 / 2) * score-correction, Euler-Maruyama, float64.

    For x_s = (1-s) x_0 + s e the score is -(x + (1-s) v) / s, so running time backwards the drift gains g^2/2 times it.
    """
    g = a * math.sqrt(s / (1 - s))
    score = -(x + (1 - s) * v) / s
    dt = s_next - s
    return x + v * dt - 0.5 * g**2 * score * dt, g * math.sqrt(-dt)


@pytest.mark.parametrize(("s", "s_next"), [(0.9, 0.8), (0.5, 0.3), (0.1, 0.02)])
@pytest.mark.parametrize("a", [0.3, 0.7, 1.2])
def test_transition_matches_the_independent_derivation(s, s_next, a):
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 3, 4, 4, 4, generator=generator, dtype=torch.float64)
    transition = flow_sde_transition(x, v, s, s_next, a, s_second=0.95)
    mean, deviation = reference_mean_and_deviation(x, v, s, s_next, a)
    assert torch.allclose(transition.mean, mean, atol=1e-12)
    assert transition.deviation == pytest.approx(deviation, rel=1e-12)


def test_log_prob_is_the_normal_density_per_element():
    generator = torch.Generator().manual_seed(1)
    x, v, noise = torch.randn(3, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    transition = flow_sde_transition(x, v, 0.6, 0.5, 0.7, 0.9)
    x_next = sample_transition(transition, noise)
    expected = torch.distributions.Normal(transition.mean, transition.deviation).log_prob(x_next)
    assert log_prob(x_next, transition).shape == x.shape
    assert torch.allclose(log_prob(x_next, transition), expected, atol=1e-12)


def test_no_noise_is_the_ode():
    x, v = torch.randn(2, 5, generator=torch.Generator().manual_seed(2))
    transition = flow_sde_transition(x, v, 0.7, 0.6, 0.0, 0.9)
    assert torch.equal(transition.mean, ode_step(x, v, 0.7, 0.6))


def test_first_step_uses_the_second_noise_level():
    x, v = torch.zeros(1), torch.ones(1)
    transition = flow_sde_transition(x, v, 1.0, 0.9, 0.7, s_second=0.9)
    assert transition.noise_scale == pytest.approx(0.7 * math.sqrt(1 / (1 - 0.9)))


def test_marginals_stay_those_of_the_ode_on_a_gaussian():
    """Data N(0, sd^2), exact velocity linear in x: many SDE steps keep Var[x_s] = (1-s)^2 sd^2 + s^2."""
    sd, steps, generator = 0.5, 400, torch.Generator().manual_seed(3)
    levels = torch.linspace(0.98, 0.02, steps + 1, dtype=torch.float64).tolist()

    def variance(s):
        return (1 - s) ** 2 * sd**2 + s**2

    x = math.sqrt(variance(levels[0])) * torch.randn(40_000, generator=generator, dtype=torch.float64)
    for s, s_next in zip(levels, levels[1:], strict=False):
        velocity = x * (s - (1 - s) * sd**2) / variance(s)  # E[e - x_0 | x_s = x]
        transition = flow_sde_transition(x, velocity, s, s_next, 0.7, levels[1])
        x = sample_transition(transition, torch.randn(x.shape, generator=generator, dtype=torch.float64))
    assert x.var().item() == pytest.approx(variance(levels[-1]), rel=0.03)
