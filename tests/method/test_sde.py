"""The samplers against closed forms, torch.distributions, and marginals that are known."""

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from star.method.sde import (
    SAMPLERS,
    CoefficientsPreserving,
    ConstantSDE,
    FlowSDE,
    Transition,
    dpm_step,
    log_ratio,
    ode_step,
)


def drawn(seed, count=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 4, 4, 4, generator=generator, dtype=torch.float64)


def step(sampler, x, v, noise_level=0.7, sigmas=(0.6, 0.5)):
    return SAMPLERS[sampler](sigmas, noise_level).transition(x, v, 0)


@pytest.mark.parametrize("sigmas", [(0.9, 0.8), (0.5, 0.3), (0.1, 0.02)])
@pytest.mark.parametrize("a", [0.3, 1.2])
def test_sdes_are_the_drift_and_the_score_by_euler_and_maruyama(sigmas, a):
    """Derived anew: for x_s = (1-s) x_0 + s e the score is -(x + (1-s) v) / s."""
    x, v = drawn(0)
    s, dt = sigmas[0], sigmas[1] - sigmas[0]
    for sampler, g in ((FlowSDE, a * math.sqrt(s / (1 - s))), (ConstantSDE, a)):
        found = sampler(sigmas, a).transition(x, v, 0)
        score = -(x + (1 - s) * v) / s
        assert torch.allclose(found.mean, x + v * dt - 0.5 * g**2 * score * dt, atol=1e-12)
        assert found.std == pytest.approx(g * math.sqrt(-dt), rel=1e-12)


@pytest.mark.parametrize("a", [0.3, 0.9])
def test_cps_replaces_noise_and_keeps_both_coefficients(a):
    """With the true e and x_0 a step is (1-s') x_0 + s' (cos b e + sin b noise)."""
    clean, noise = drawn(1)
    s, s_next, angle = 0.8, 0.6, a * math.pi / 2
    x, velocity = (1 - s) * clean + s * noise, noise - clean
    found = CoefficientsPreserving((s, s_next), a).transition(x, velocity, 0)
    expected = (1 - s_next) * clean + s_next * math.cos(angle) * noise
    assert torch.allclose(found.mean, expected, atol=1e-12)
    assert found.std == pytest.approx(s_next * math.sin(angle))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_step_has_the_noise_levels_of_its_place_in_the_schedule(sampler):
    x, v = drawn(2)
    whole = SAMPLERS[sampler]((0.9, 0.7, 0.4, 0.1), 0.5).transition(x, v, 1)
    alone = step(sampler, x, v, 0.5, (0.7, 0.4))
    assert torch.equal(whole.mean, alone.mean) and whole.std == alone.std


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_log_ratio_is_the_difference_of_normal_densities_per_element(sampler):
    x, old, new, noise = drawn(2, 4)
    was, now = step(sampler, x, old), step(sampler, x, new)
    x_next = was.sample(noise)
    density = [torch.distributions.Normal(t.mean, t.std).log_prob(x_next) for t in (now, was)]
    found = log_ratio(x_next, now, was.mean, normalised=False)
    assert torch.allclose(found, density[0] - density[1], atol=1e-9)
    assert torch.equal(log_ratio(x_next, was, was.mean, normalised=False), torch.zeros_like(x))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_drawn_steps_have_the_density_that_is_claimed(sampler):
    """Monte Carlo: under the old policy the ratio of another one's density has mean 1."""
    x, old, new = drawn(3, 3)
    was, now = step(sampler, x, old), step(sampler, x, old + 0.2 * (new - old))
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(20_000, *x.shape, generator=generator, dtype=torch.float64)
    ratio = log_ratio(was.sample(noise), now, was.mean, normalised=False).exp()
    error = (ratio.mean(0) - 1).abs() / (ratio.std(0) / math.sqrt(len(noise)))
    assert error.mean() < 1.2 and error.max() < 5  # in standard errors


@pytest.mark.parametrize("std", [0.02, 0.7])
def test_normalised_ratio_has_mean_zero_and_one_size_at_all_noise_levels(std):
    """GRPO-Guard: at a given move of the mean it is (m - m_old) noise, whatever the step's std."""
    mean, move, noise = drawn(5, 3)
    now = Transition(mean + 0.01 * move, std, std)
    x_next = mean + std * noise
    found = log_ratio(x_next, now, mean, normalised=True)
    assert torch.allclose(found, 0.01 * move * noise, atol=1e-12)
    plain = log_ratio(x_next, now, mean, normalised=False)
    assert torch.allclose(std * (plain + (0.01 * move) ** 2 / (2 * std**2)), found, atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_noise_is_the_ode(sampler):
    x, v = drawn(6)
    found = step(sampler, x, v, 0.0, (0.7, 0.6))
    assert torch.allclose(found.mean, ode_step(x, v, 0.7, 0.6), atol=1e-12) and found.std == 0


@pytest.mark.parametrize("first", [1.0, float.fromhex("0x1.fffffep-1")])
def test_first_step_uses_the_second_noise_level(first):
    """Also where a shift makes the first one a rounding of float32 below 1."""
    found = FlowSDE((first, 0.9), 0.7).transition(torch.zeros(1), torch.ones(1), 0)
    assert found.kl_std == pytest.approx(0.7 * math.sqrt(1 / (1 - 0.9)))


def variance(s, std):
    """Of x_s on data N(0, std^2)."""
    return (1 - s) ** 2 * std**2 + s**2


def exact_velocity(x, s, std):
    """E[e - x_0 | x_s = x] on data N(0, std^2)."""
    return x * (s - (1 - s) * std**2) / variance(s, std)


def schedule(steps):
    return torch.linspace(0.98, 0.02, steps + 1, dtype=torch.float64).tolist()


def sampled_variance(sampler, std, steps, noise_level, window=None):
    """Variance at the end of a chain; ODE steps outside the window."""
    generator, sigmas = torch.Generator().manual_seed(7), schedule(steps)
    chain = SAMPLERS[sampler](sigmas, noise_level)
    x = torch.randn(40_000, generator=generator, dtype=torch.float64)
    x = math.sqrt(variance(sigmas[0], std)) * x
    for t in range(steps):
        velocity = exact_velocity(x, sigmas[t], std)
        if window is None or window[0] <= t < window[1]:
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            x = chain.transition(x, velocity, t).sample(noise)
        else:
            x = ode_step(x, velocity, sigmas[t], sigmas[t + 1])
    return x.var().item()


@pytest.mark.parametrize("sampler", ["flow_sde", "dance"])
@pytest.mark.parametrize(("a", "window"), [(0.7, None), (0.7, (100, 200)), (0.0, None)])
def test_marginals_stay_those_of_the_ode_on_a_gaussian(sampler, a, window):
    found = sampled_variance(sampler, 0.5, 400, a, window)
    assert found == pytest.approx(variance(0.02, 0.5), rel=0.03)


@pytest.mark.parametrize("steps", [5, 50])
def test_cps_keeps_the_marginals_of_a_point_at_any_number_of_steps(steps):
    assert sampled_variance("cps", 0.0, steps, 0.8) == pytest.approx(variance(0.02, 0.0), rel=0.03)


@pytest.mark.parametrize(("sampler", "a"), [("cps", 0.6), ("flow_sde", 0.7), ("dance", 0.7)])
def test_the_variance_of_few_steps_is_the_linear_recursion_known_in_closed_form(sampler, a):
    """On a Gaussian each step is ``x' = c x + std noise``, so the chain's variance is known.

    For cps it is not the ODE's: what it trades for noise levels that are exact.
    """
    sigmas, one = schedule(10), torch.ones(1, dtype=torch.float64)
    known = variance(sigmas[0], 0.5)
    for t in range(10):
        velocity = exact_velocity(one, sigmas[t], 0.5)
        found = SAMPLERS[sampler](sigmas, a).transition(one, velocity, t)
        known = found.mean.item() ** 2 * known + found.std**2
    assert sampled_variance(sampler, 0.5, 10, a) == pytest.approx(known, rel=0.03)
    assert sampler != "cps" or known < 0.9 * variance(0.02, 0.5)


@pytest.mark.parametrize("steps", [2, 3, 10, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpm_steps_are_those_of_diffusers(steps, shift):
    """Its schedule begins below 1; the model is a curved field."""
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    scheduler = DPMSolverMultistepScheduler(solver_order=2, algorithm_type="dpmsolver++", **flow)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double().tolist()
    stock = ours = drawn(5)[0]
    clean = None
    for t in range(steps):
        stock = scheduler.step(torch.sin(3 * stock), scheduler.timesteps[t], stock).prev_sample
        ours, clean = dpm_step(ours, torch.sin(3 * ours), sigmas, t, clean)
    assert torch.allclose(ours, stock, atol=1e-5)


def test_dpm_steps_from_pure_noise_are_exact_for_one_image_and_closer_than_euler_s():
    """Data that is a point needs one step; of a Gaussian of std 0.5 the ODE is known."""
    clean, noise = drawn(6)
    sigmas = [1 - i / 10 for i in range(10)] + [0.0]
    x, before = noise, None
    for t, s in enumerate(sigmas[:-1]):
        x, before = dpm_step(x, (x - clean) / s, sigmas, t, before)
    assert torch.allclose(x, clean, atol=1e-12)
    solved = []
    for solver in ("dpm2m", "euler"):
        x, before = noise, None
        for t, s in enumerate(sigmas[:-1]):
            variance = (1 - s) ** 2 * 0.25 + s**2
            velocity = (s - (1 - s) * 0.25) / variance * x
            if solver == "dpm2m":
                x, before = dpm_step(x, velocity, sigmas, t, before)
            else:
                x = ode_step(x, velocity, s, sigmas[t + 1])
        solved.append((x - 0.5 * noise).abs().max())
    assert solved[0] < 0.1 * solved[1]
