"""Bootstrap intervals: closed forms, coverage by simulation, properties of pairing and of
groups."""

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


def test_constant_values_have_no_width():
    assert bootstrap_mean(np.full(17, 0.25), 200, seed=1) == Interval(0.25, 0.25, 0.25)
    tags = np.array(["a", "b"] * 4)
    assert bootstrap_tag_mean(np.where(tags == "a", 1.0, 0.0), tags, 200, seed=1) == Interval(
        0.5, 0.5, 0.5
    )


def test_two_values_give_the_quantiles_of_three_points():
    # Resamples of {0, 1} have means 0, 1/2, 1 with probability 1/4, 1/2, 1/4: the 95 % ends are 0
    # and 1.
    assert bootstrap_mean(np.array([0.0, 1.0]), 4000, seed=0) == Interval(0.5, 0.0, 1.0)


def test_width_is_the_normal_one_for_a_large_binomial_sample():
    values = np.repeat([True, False], [300, 700])
    interval = bootstrap_mean(values, 4000, seed=2)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert interval.mean == pytest.approx(0.3)
    assert (interval.low, interval.high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.1 * half)


def test_coverage_of_a_known_proportion_is_about_95_percent():
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(400):
        interval = bootstrap_mean(rng.random(200) < 0.4, 400, seed=trial)
        covered += interval.low <= 0.4 <= interval.high
    assert 0.91 <= covered / 400 <= 0.98


def test_images_of_a_prompt_are_drawn_together():
    # Ten identical images a prompt say no more than one: the interval is the one of the prompts
    # alone.
    rng = np.random.default_rng(4)
    prompts = rng.random(60)
    groups = np.repeat(np.arange(60), 10)
    clustered = bootstrap_mean(np.repeat(prompts, 10), 1000, seed=5, groups=groups)
    assert clustered.low == pytest.approx(bootstrap_mean(prompts, 1000, seed=5).low)
    naive = bootstrap_mean(np.repeat(prompts, 10), 1000, seed=5)
    assert clustered.high - clustered.low > 2.5 * (naive.high - naive.low)


def test_groups_of_unequal_size_keep_the_mean_over_images():
    interval = bootstrap_mean(
        np.array([1.0, 1.0, 1.0, 0.0]), 2000, seed=0, groups=np.array([7, 7, 7, 9])
    )
    assert interval == Interval(0.75, 0.0, 1.0)


def test_tag_mean_weighs_tags_equally_and_resamples_within_them():
    values = np.array([1.0] * 90 + [0.0] * 10)
    tags = np.array(["easy"] * 90 + ["hard"] * 10)
    # Nothing varies within a tag, so stratified resampling leaves no width; unstratified resampling
    # would.
    assert bootstrap_tag_mean(values, tags, 500, seed=0) == Interval(0.5, 0.5, 0.5)
    assert (
        bootstrap_mean(values, 500, seed=0).low
        < bootstrap_mean(values, 500, seed=0).mean
        == pytest.approx(0.9)
    )


def test_tag_mean_of_one_tag_is_the_mean():
    values = np.random.default_rng(6).random(40)
    assert bootstrap_tag_mean(values, np.full(40, "x"), 300, seed=7) == bootstrap_mean(
        values, 300, seed=7
    )


def test_pairing_is_exact_where_the_gain_is_constant():
    base = np.random.default_rng(8).integers(0, 8, 50) / 8  # dyadic: differences have no rounding
    assert paired_difference(base + 0.125, base, 500, seed=0) == Interval(0.125, 0.125, 0.125)
    tags = np.array(["a", "b"] * 25)
    assert paired_tag_difference(base - 0.25, base, tags, 500, seed=0) == Interval(
        -0.25, -0.25, -0.25
    )


def test_pairing_narrows_the_interval_of_correlated_scores():
    rng = np.random.default_rng(9)
    base = rng.normal(size=200)
    paired = paired_difference(base + 0.1 + 0.05 * rng.normal(size=200), base, 1000, seed=0)
    assert paired.excludes_zero
    assert paired.high - paired.low < 0.2 * (
        bootstrap_mean(base, 1000, 0).high - bootstrap_mean(base, 1000, 0).low
    )


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


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=30))
def test_difference_is_antisymmetric_in_the_mean(pairs):
    left, right = np.array(pairs).T
    assert paired_difference(left, right, 20, 0).mean == pytest.approx(
        -paired_difference(right, left, 20, 0).mean
    )


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
    with pytest.raises(ValueError, match="groups of shape"):
        bootstrap_mean(values, 10, 0, groups=np.array([1]))
    with pytest.raises(ValueError, match="tags of shape"):
        bootstrap_tag_mean(values, np.array(["a"]), 10, 0)
    with pytest.raises(ValueError, match="two tags"):
        bootstrap_tag_mean(values, np.array(["a", "b"]), 10, 0, groups=np.array([1, 1]))
    with pytest.raises(ValueError, match="equal shapes"):
        paired_difference(values, values[:1], 10, 0)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_mean(values, 0, 0)
