"""The samplers: closed forms against float64, torch.distributions, and marginals where the answer
is known."""

import math

import pytest
import torch

from star.method.sde import (
    SAMPLERS,
    Transition,
    constant_sde,
    flow_sde,
    log_ratio,
    ode_step,
    preserving_step,
    sample_transition,
)


def drawn(seed, count=2):
    return torch.randn(
        count, 3, 4, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def reference_mean_and_deviation(x, v, s, s_next, g):
    """An independent derivation: SDE drift = ODE velocity + (g^2 / 2) * score-correction,
    Euler-Maruyama, float64.

    For x_s = (1-s) x_0 + s e the score is -(x + (1-s) v) / s, so running time backwards the drift
    gains g^2/2 times it."""
    score = -(x + (1 - s) * v) / s
    dt = s_next - s
    return x + v * dt - 0.5 * g**2 * score * dt, g * math.sqrt(-dt)


@pytest.mark.parametrize(("s", "s_next"), [(0.9, 0.8), (0.5, 0.3), (0.1, 0.02)])
@pytest.mark.parametrize("a", [0.3, 0.7, 1.2])
def test_sdes_match_the_independent_derivation(s, s_next, a):
    x, v = drawn(0)
    for sampler, g in ((flow_sde, a * math.sqrt(s / (1 - s))), (constant_sde, a)):
        transition = sampler(x, v, s, s_next, a, s_second=0.95)
        mean, deviation = reference_mean_and_deviation(x, v, s, s_next, g)
        assert torch.allclose(transition.mean, mean, atol=1e-12)
        assert transition.deviation == pytest.approx(deviation, rel=1e-12)


@pytest.mark.parametrize("a", [0.3, 0.9])
def test_cps_replaces_noise_and_keeps_both_coefficients(a):
    """With the true e and x_0 the step's mean and deviation are those of (1-s') x_0 + s' (cos b e +
    sin b noise)."""
    clean, noise = drawn(1)
    s, s_next, angle = 0.8, 0.6, a * math.pi / 2
    transition = preserving_step((1 - s) * clean + s * noise, noise - clean, s, s_next, a, 0.95)
    expected = (1 - s_next) * clean + s_next * math.cos(angle) * noise
    assert torch.allclose(transition.mean, expected, atol=1e-12)
    assert transition.deviation == pytest.approx(s_next * math.sin(angle))
    assert math.hypot(s_next * math.cos(angle), transition.deviation) == pytest.approx(s_next)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_log_ratio_is_the_difference_of_normal_densities_per_element(sampler):
    x, old, new, noise = drawn(2, 4)
    was, now = (SAMPLERS[sampler](x, v, 0.6, 0.5, 0.7, 0.9) for v in (old, new))
    x_next = sample_transition(was, noise)
    density = [torch.distributions.Normal(t.mean, t.deviation).log_prob(x_next) for t in (now, was)]
    assert torch.allclose(
        log_ratio(x_next, now, was.mean, normalised=False), density[0] - density[1], atol=1e-9
    )
    assert torch.equal(log_ratio(x_next, was, was.mean, normalised=False), torch.zeros_like(x))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_drawn_steps_have_the_density_that_is_claimed(sampler):
    """Monte Carlo: under the old policy the ratio of another one's density has mean 1, whatever the
    sampler."""
    x, old, new = drawn(3, 3)
    was, now = (SAMPLERS[sampler](x, v, 0.6, 0.5, 0.7, 0.9) for v in (old, old + 0.2 * (new - old)))
    noise = torch.randn(
        20_000, *x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    ratio = log_ratio(sample_transition(was, noise), now, was.mean, normalised=False).exp()
    error = (ratio.mean(0) - 1).abs() / (ratio.std(0) / math.sqrt(len(noise)))
    assert error.mean() < 1.2 and error.max() < 5  # in standard errors


def test_normalised_ratio_has_mean_zero_and_one_size_at_all_noise_levels():
    """GRPO-Guard: at a given move of the mean the log-ratio is (m - m_old) noise, whatever the
    step's deviation."""
    mean, move, noise = drawn(5, 3)
    for deviation in (0.02, 0.7):
        now = Transition(mean + 0.01 * move, deviation, 1.0)
        x_next = mean + deviation * noise
        assert torch.allclose(
            log_ratio(x_next, now, mean, normalised=True), 0.01 * move * noise, atol=1e-12
        )
        plain = log_ratio(x_next, now, mean, normalised=False)
        restored = deviation * (plain + (0.01 * move) ** 2 / (2 * deviation**2))
        assert torch.allclose(restored, 0.01 * move * noise, atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_noise_is_the_ode(sampler):
    x, v = drawn(6)
    transition = SAMPLERS[sampler](x, v, 0.7, 0.6, 0.0, 0.9)
    assert torch.allclose(transition.mean, ode_step(x, v, 0.7, 0.6), atol=1e-12)
    assert transition.deviation == 0


def test_first_step_uses_the_second_noise_level():
    x, v = torch.zeros(1), torch.ones(1)
    exact = flow_sde(x, v, 1.0, 0.9, 0.7, s_second=0.9).noise_scale
    assert exact == pytest.approx(0.7 * math.sqrt(1 / (1 - 0.9)))
    below_one = torch.nextafter(
        torch.tensor(1.0), torch.tensor(0.0)
    ).item()  # as some shifts make it in float32
    assert flow_sde(x, v, below_one, 0.9, 0.7, s_second=0.9).noise_scale == pytest.approx(exact)


def variance(s, sd):
    """Of x_s on data N(0, sd^2)."""
    return (1 - s) ** 2 * sd**2 + s**2


def exact_velocity(x, s, sd):
    """E[e - x_0 | x_s = x] on data N(0, sd^2)."""
    return x * (s - (1 - s) * sd**2) / variance(s, sd)


def sampled_variance(sampler, sd, steps, noise_level, window=None):
    """Variance at the end of a chain from s = .98 to .02; ODE steps outside the window."""
    generator = torch.Generator().manual_seed(7)
    levels = torch.linspace(0.98, 0.02, steps + 1, dtype=torch.float64).tolist()
    x = math.sqrt(variance(levels[0], sd)) * torch.randn(
        40_000, generator=generator, dtype=torch.float64
    )
    for t, (s, s_next) in enumerate(zip(levels, levels[1:], strict=False)):
        velocity = exact_velocity(x, s, sd)
        if window is None or window[0] <= t < window[1]:
            transition = SAMPLERS[sampler](x, velocity, s, s_next, noise_level, levels[1])
            x = sample_transition(
                transition, torch.randn(x.shape, generator=generator, dtype=torch.float64)
            )
        else:
            x = ode_step(x, velocity, s, s_next)
    return x.var().item()


@pytest.mark.parametrize("sampler", ["flow_sde", "dance"])
@pytest.mark.parametrize("window", [None, (100, 200)])
def test_marginals_stay_those_of_the_ode_on_a_gaussian(sampler, window):
    expected = variance(0.02, 0.5)
    assert sampled_variance(sampler, 0.5, 400, 0.7, window) == pytest.approx(expected, rel=0.03)
    assert sampled_variance(sampler, 0.5, 400, 0.0) == pytest.approx(expected, rel=0.03), (
        "the ODE itself"
    )


@pytest.mark.parametrize("steps", [5, 50])
def test_cps_keeps_the_marginals_of_a_point_at_any_number_of_steps(steps):
    assert sampled_variance("cps", 0.0, steps, 0.8) == pytest.approx(variance(0.02, 0.0), rel=0.03)


@pytest.mark.parametrize(("sampler", "a"), [("cps", 0.6), ("flow_sde", 0.7), ("dance", 0.7)])
def test_the_variance_of_few_steps_is_the_linear_recursion_known_in_closed_form(sampler, a):
    """On a Gaussian each step is ``x' = c x + deviation noise``: the chain's variance follows
    without sampling. For cps it is not the ODE's: what it trades for noise levels that are
    exact."""
    sd, steps = 0.5, 10
    levels = torch.linspace(0.98, 0.02, steps + 1, dtype=torch.float64).tolist()
    known, one = variance(levels[0], sd), torch.ones(1, dtype=torch.float64)
    for s, s_next in zip(levels, levels[1:], strict=False):
        transition = SAMPLERS[sampler](one, exact_velocity(one, s, sd), s, s_next, a, levels[1])
        known = transition.mean.item() ** 2 * known + transition.deviation**2
    assert sampled_variance(sampler, sd, steps, a) == pytest.approx(known, rel=0.03)
    if sampler == "cps":
        assert known < 0.9 * variance(0.02, sd)
