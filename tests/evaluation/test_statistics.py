"""Bootstrap intervals: closed forms, coverage by simulation, properties of pairing and groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star.evaluation.statistics import (
    Interval,
    bootstrap_mean,
    bootstrap_tag_mean,
    paired_difference,
    paired_tag_difference,
)

finite = st.floats(-1e3, 1e3, allow_subnormal=False)
TAGS = np.array(["a", "b"] * 25)


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


def test_coverage_of_a_known_proportion_is_about_95_percent():
    rng = np.random.default_rng(3)
    intervals = [bootstrap_mean(rng.random(200) < 0.4, 400, seed=trial) for trial in range(400)]
    covered = [interval.low <= 0.4 <= interval.high for interval in intervals]
    assert 0.91 <= np.mean(covered) <= 0.98


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
    assert bootstrap_tag_mean(values, tags, 500, seed=0) == Interval(0.5, 0.5, 0.5)
    whole = bootstrap_mean(values, 500, seed=0)
    assert whole.mean == pytest.approx(0.9) and width(whole) > 0


def test_pairing_is_exact_where_the_gain_is_constant():
    base = np.random.default_rng(8).integers(0, 8, 50) / 8  # dyadic: differences have no rounding
    assert paired_difference(base + 0.125, base, 500, 0) == Interval(0.125, 0.125, 0.125)
    assert paired_tag_difference(base - 0.25, base, TAGS, 500, 0) == Interval(-0.25, -0.25, -0.25)


def test_pairing_narrows_the_interval_of_correlated_scores():
    rng = np.random.default_rng(9)
    base = rng.normal(size=200)
    paired = paired_difference(base + 0.1 + 0.05 * rng.normal(size=200), base, 1000, seed=0)
    assert paired.excludes_zero
    assert width(paired) < 0.2 * width(bootstrap_mean(base, 1000, 0))


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


@pytest.mark.parametrize("values", [[], [[0.1, 0.2]], [0.1, float("nan")], [float("inf")]])
def test_bad_values_are_refused(values):
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean(np.array(values), 10, seed=0)


def test_shapes_that_disagree_are_refused():
    values = np.array([0.1, 0.2])
    with pytest.raises(ValueError, match=r"groups \(1,\)"):
        bootstrap_mean(values, 10, 0, groups=np.array([1]))
    with pytest.raises(ValueError, match=r"tags \(1,\)"):
        bootstrap_tag_mean(values, np.array(["a"]), 10, 0)
    with pytest.raises(ValueError, match="two tags"):
        bootstrap_tag_mean(values, np.array(["a", "b"]), 10, 0, groups=np.array([1, 1]))
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        paired_difference(values, values[:1], 10, 0)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_mean(values, 0, 0)
