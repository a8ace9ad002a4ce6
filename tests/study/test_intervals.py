"""Closed forms of the study's intervals and crossings."""

import math

import numpy as np
import pytest

from star.evaluation.statistics import Interval
from star.study.intervals import crossing_ratio, first_crossing, t_interval, t_quantile

LOOKS = np.array([0.0, 100.0, 200.0])  # images


def test_t_interval_in_closed_form():
    found = t_interval(np.array([1.0, 2.0, 3.0]))  # standard error 1 / sqrt(3); t of 2: 4.3027
    half = 4.30265 / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-5)
    assert t_quantile(5) == pytest.approx(2.77645, abs=1e-5)
    assert t_interval(np.array([0.5, 0.5])) == Interval(0.5, 0.5, 0.5)
    alone = t_interval(np.array([0.5]))
    assert alone == Interval(0.5, -math.inf, math.inf) and not alone.excludes_zero


def test_first_crossing_is_linear_between_looks_and_the_first_counts():
    curves = [
        [0.0, 1.0, 0.0, 2.0],
        [0.0, 0.1, 0.2, 0.4],
        [0.9, 0.0, 0.0, 1.0],
        [0.0, 0.5, 0.5, 0.5],
    ]
    looks, levels = np.array([0.0, 10.0, 20.0, 40.0]), np.array([0.25, 0.3, 0.9, 0.5])
    np.testing.assert_allclose(first_crossing(np.array(curves), looks, levels), [2.5, 30, 0, 10])
    never = first_crossing(np.array([[0.0, 0.4]]), looks[:2], np.array([0.5]))
    assert never.tolist() == [math.inf]


def test_crossing_ratio_and_its_bootstrap_of_equal_seeds():
    ours, theirs = np.tile([0.0, 0.5, 0.9], (3, 1)), np.tile([0.0, 0.25, 0.5], (3, 1))
    assert crossing_ratio(ours, theirs, LOOKS, 100, 0) == (100.0, Interval(0.5, 0.5, 0.5))
    assert crossing_ratio(theirs, theirs, LOOKS, 100, 0) == (200.0, Interval(1.0, 1.0, 1.0))
    never, ratio = crossing_ratio(theirs, ours, LOOKS, 100, 0)
    assert math.isinf(never) and ratio == Interval(math.inf, math.inf, math.inf)
    falling = theirs[:, ::-1]
    assert crossing_ratio(ours + 0.5, falling, LOOKS, 100, 0)[1] == Interval(1.0, 1.0, 1.0)


def test_bootstrap_pairs_seeds_and_ends_at_infinity_where_the_level_is_missed():
    shift = np.array([[0.0], [0.1], [0.2]])
    theirs = np.array([0.0, 0.25, 0.5]) + shift * [0, 0, 1]
    steep = np.array([0.0, 0.5, 1.0]) + shift * [0, 1, 1]  # crosses at 100 level / (0.5 + shift)
    _, paired = crossing_ratio(steep, theirs, LOOKS, 500, 0)
    assert paired == Interval(*[pytest.approx(0.5)] * 3)  # the shift of a seed cancels
    _, ratio = crossing_ratio(np.tile([0.0, 0.3, 0.6], (3, 1)), theirs, LOOKS, 500, 0)
    assert ratio.mean == pytest.approx(1.0) and math.isinf(ratio.high) and 0.8 < ratio.low < 0.9
