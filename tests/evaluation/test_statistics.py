"""Bootstrap intervals: closed forms, properties of groups and tags."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star.evaluation.statistics import Interval, bootstrap_mean

finite = st.floats(-1e3, 1e3, allow_subnormal=False)


def width(interval):
    return interval.high - interval.low


def test_constant_values_have_no_width():
    assert bootstrap_mean(np.full(17, 0.25), 200, seed=1) == Interval(0.25, 0.25, 0.25)


def test_two_values_give_the_quantiles_of_three_points():
    # Resamples of {0, 1} have means 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_mean(np.array([0.0, 1.0]), 4000, seed=0) == Interval(0.5, 0.0, 1.0)


def test_width_is_the_normal_one_for_a_large_binomial_sample():
    interval = bootstrap_mean(np.repeat([True, False], [300, 700]), 4000, seed=2)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert interval.mean == pytest.approx(0.3)
    assert (interval.low, interval.high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.1 * half)


def test_images_of_a_prompt_are_resampled_together():
    # Ten identical images a prompt say no more than one: the interval is that of the prompts alone.
    prompts = np.random.default_rng(4).random(60)
    groups = np.repeat(np.arange(60), 10)
    clustered = bootstrap_mean(np.repeat(prompts, 10), 1000, seed=5, groups=groups)
    assert clustered.low == pytest.approx(bootstrap_mean(prompts, 1000, seed=5).low)
    assert width(clustered) > 2.5 * width(bootstrap_mean(np.repeat(prompts, 10), 1000, seed=5))


def test_groups_of_unequal_size_keep_the_mean_over_images():
    values, groups = np.array([1.0, 1.0, 1.0, 0.0]), np.array([7, 7, 7, 9])
    assert bootstrap_mean(values, 2000, seed=0, groups=groups) == Interval(0.75, 0.0, 1.0)


def test_tag_mean_weighs_tags_equally_and_resamples_within_them():
    values, tags = np.repeat([1.0, 0.0], [90, 10]), np.repeat(["easy", "hard"], [90, 10])
    # Nothing varies within a tag, so resampling within tags leaves no width; other would.
    assert bootstrap_mean(values, 500, 0, tags=tags) == Interval(0.5, 0.5, 0.5)
    whole = bootstrap_mean(values, 500, seed=0)
    assert whole.mean == pytest.approx(0.9) and width(whole) > 0


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.3, True), (-0.3, -0.1, True), (-0.1, 0.1, False), (0.0, 0.2, False)],
)
def test_excludes_zero(low, high, expected):
    assert Interval(0.1, low, high).excludes_zero is expected


@settings(max_examples=50, deadline=None)
@given(st.lists(finite, min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_interval_is_deterministic_and_inside_the_data(values, seed):
    interval = bootstrap_mean(np.array(values), 50, seed)
    assert interval == bootstrap_mean(np.array(values), 50, seed)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack


def test_chunks_do_not_change_the_result(monkeypatch):
    values = np.random.default_rng(10).random(30)
    whole = bootstrap_mean(values, 101, seed=11)
    monkeypatch.setattr("star.evaluation.statistics._CHUNK_ELEMENTS", 64)
    assert bootstrap_mean(values, 101, seed=11) == whole


@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [float("inf")]])
def test_bad_values_are_refused(values):
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean(np.array(values), 10, seed=0)


def test_a_group_with_two_tags_is_refused():
    with pytest.raises(ValueError, match="two tags"):
        bootstrap_mean(np.ones(2), 10, 0, groups=np.array([1, 1]), tags=np.array(["a", "b"]))
