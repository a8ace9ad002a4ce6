"""GenEval's rules: hand-worked cases for each rule and boundary, then properties, then the reward
around them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star.config.params import GenevalParams
from star.miniature.world import CLASSES, render, sample_scene
from star.prompts.geneval import COLORS, TAGS, sample_metadata
from star.prompts.records import PromptRecord
from star.rewards.base import RewardError
from star.rewards.detection import Detection, DetectionError
from star.rewards.factory import build_detector
from star.rewards.geneval import GenevalReward, clause_shares, judge, keep_detections, relations
from star.system.errors import StarError

PARAMS = GenevalParams(
    detector="exact",
    path=None,
    revision=None,
    color_path=None,
    color_revision=None,
    batch=8,
    soft="clamped",
    score_threshold=0.3,
    counting_threshold=0.9,
    max_per_class=16,
)
PUBLISHED = replace(PARAMS, soft="published")
MASK = np.zeros((2, 2), bool)


def found(name="cat", score=0.99, box=(0.0, 0.0, 10.0, 10.0), color="red"):
    return Detection(name, score, box, MASK, color)


def line(*include, tag="two_object", **more):
    return {"tag": tag, "include": list(include), "prompt": "a photo", **more}


def clause(name="cat", count=1, **more):
    return {"class": name, "count": count, **more}


def verdict(detections, metadata):
    judged = judge(detections, metadata, PARAMS)
    return judged.strict, judged.soft


def at(x, y, name="cat", side=10.0):
    return found(name, box=(x - side / 2, y - side / 2, x + side / 2, y + side / 2))


# ---------------------------------------------------------------- which detections are kept


@pytest.mark.parametrize(
    ("tag", "score", "kept"),
    [
        ("single_object", 0.3, False),
        ("single_object", 0.3 + 1e-9, True),
        ("counting", 0.9, False),
        ("counting", 0.9 + 1e-9, True),
        ("counting", 0.5, False),
    ],
)
def test_score_must_exceed_the_threshold_of_the_tag(tag, score, kept):
    assert verdict([found(score=score)], line(clause(), tag=tag)) == (kept, float(kept))


def test_the_seventeenth_detection_of_a_class_is_dropped_and_it_is_the_worst():
    detections = [found(score=0.5 + 0.01 * i) for i in range(17)] + [found("dog", 0.4)]
    kept = keep_detections(detections, 0.3, 16)
    assert [len(kept["cat"]), len(kept["dog"])] == [16, 1]
    assert kept["cat"][0].score == pytest.approx(0.66)
    assert kept["cat"][-1].score == pytest.approx(0.51)


def test_overlapping_detections_are_both_kept():
    assert verdict([found(), found()], line(clause(count=2), tag="counting")) == (True, 1.0)


# ---------------------------------------------------------------- include, count, exclude


def test_include_clauses_are_anded():
    metadata = line(clause("cat"), clause("car"))
    assert verdict([found("cat"), found("car")], metadata) == (True, 1.0)
    assert verdict([found("cat")], metadata) == (False, 0.5)
    assert verdict([], metadata) == (False, 0.0)


@pytest.mark.parametrize(
    ("n", "strict", "soft"), [(2, False, 2 / 3), (3, True, 1.0), (4, False, 2 / 3), (9, False, 0.0)]
)
def test_counting_with_its_exclude_clause_wants_the_exact_number(n, strict, soft):
    metadata = line(clause(count=3), tag="counting", exclude=[clause(count=4)])
    assert verdict([found()] * n, metadata) == (strict, pytest.approx(soft))


def test_soft_score_is_clamped_where_the_published_one_is_negative():
    assert verdict([found()] * 5, line(clause(count=1)))[1] == 0.0  # published: -3


def test_without_exclude_a_surplus_passes_the_strict_rule_but_costs_the_soft_one():
    assert verdict([found()] * 2, line(clause())) == (True, 0.0)
    assert verdict([found()] * 3, line(clause(count=2))) == (True, 0.5)


def test_exclude_counts_every_kept_detection_of_its_class():
    metadata = line(clause("cat"), exclude=[clause("dog", count=2)])
    assert verdict([found("cat"), found("dog")], metadata)[0] is True
    assert verdict([found("cat"), found("dog"), found("dog", 0.31)], metadata)[0] is False
    assert verdict([found("cat"), found("dog"), found("dog", 0.3)], metadata)[0] is True


# ---------------------------------------------------------------- colour


def test_color_of_one_object():
    metadata = line(clause(color="red"), tag="colors")
    assert verdict([found(color="red")], metadata) == (True, 1.0)
    assert verdict([found(color="blue")], metadata) == (False, 0.5)
    assert verdict([found(color=None)], metadata) == (False, 0.5)
    assert verdict([], metadata) == (False, 0.0)


def test_color_counts_among_the_best_count_detections():
    metadata = line(clause(count=2, color="red"))
    assert verdict([found(color="red"), found(color="blue")], metadata) == (
        False,
        0.75,
    )  # count 1, colour 1/2
    reds_first = [found(score=0.9), found(score=0.8), found(score=0.7, color="blue")]
    assert verdict(reds_first, metadata) == (
        True,
        0.25,
    )  # the third is not looked at; soft: count 1/2, colour 0
    red_last = [found(score=0.9), found(score=0.8, color="blue"), found(score=0.7)]
    assert verdict(red_last, metadata)[0] is False


# ---------------------------------------------------------------- position


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0, 0, set()),  # no offset: no division by zero
        (2, 0, set()),  # the margin 0.1 * (10 + 10) = 2 eats it
        (2.0005, 0, set()),  # less than a thousandth of a pixel is left
        (3, 0, set()),  # (3 - 2) / 3 < 0.5
        (4, 0, set()),  # (4 - 2) / 4 = 0.5 exactly: not beyond it
        (4.01, 0, {"right of"}),
        (-4.01, 0, {"left of"}),
        (0, 4.01, {"below"}),
        (0, -4.01, {"above"}),
        (20, 20, {"right of", "below"}),  # 18 / 28.3 = 0.64 each
        (-20, -6, {"left of"}),  # 18 / 20.9 and 4 / 20.9
    ],
)
def test_relation_of_two_boxes(x, y, expected):
    assert relations(at(x, y).box, at(0, 0).box) == expected


def test_the_margin_is_per_axis_and_adds_both_boxes():
    wide, narrow = (-20.0, -1.0, 20.0, 1.0), (5.0, 9.0, 15.0, 11.0)  # centres (0, 0) and (10, 10)
    # x: 10 - 0.1 * (40 + 10) = 5, y: 10 - 0.1 * (2 + 2) = 9.6, norm 14.14
    assert relations(narrow, wide) == {"below"}


def position_line():
    return line(clause("car"), clause("cat", position=["left of", 0]), tag="position")


def test_position_looks_from_the_clause_to_the_one_referred_to():
    assert verdict([at(0, 0, "cat"), at(30, 0, "car")], position_line()) == (True, 1.0)
    # A wrong position is one 0: (1 + 1 + 0) / 3. The published reward appends a 1, too.
    assert verdict([at(30, 0, "cat"), at(0, 0, "car")], position_line()) == (
        False,
        pytest.approx(2 / 3),
    )
    assert verdict([at(0, 0, "cat"), at(0, 0, "car")], position_line())[0] is False


def test_position_without_the_object_referred_to():
    assert verdict([at(0, 0, "cat")], position_line()) == (False, pytest.approx(1 / 3))
    assert verdict([at(30, 0, "car")], position_line()) == (False, pytest.approx(1 / 3))


def test_position_holds_for_every_pair_of_the_best_detections():
    metadata = line(clause("car", 2), clause("cat", position=["left of", 0]), tag="position")
    cars = [at(30, 0, "car"), at(60, 0, "car")]
    assert verdict([at(0, 0, "cat"), *cars], metadata)[0] is True
    assert verdict([at(45, 0, "cat"), *cars], metadata)[0] is False


def test_a_clause_that_fails_its_color_cannot_be_referred_to():
    metadata = line(clause("car", color="blue"), clause("cat", position=["left of", 0]))
    assert verdict([at(0, 0, "cat"), at(30, 0, "car")], metadata) == (
        False,
        0.5,
    )  # counts 1 1, colour 0, position 0


def test_clause_scores_name_their_include_clause():
    judged = judge([at(0, 0, "cat"), at(30, 0, "car")], position_line(), PARAMS)
    assert [(c.clause, c.kind, c.name, c.wanted, c.score) for c in judged.clauses] == [
        (0, "count", "car", 1, 1.0),
        (1, "count", "cat", 1, 1.0),
        (1, "position", "cat", "left of 0", 1.0),
    ]


# ---------------------------------------------------------------- the published form of the soft re


def published(detections, metadata):
    """Soft reward and the scores behind it, grouped by clause."""
    judged = judge(detections, metadata, PUBLISHED)
    assert judged.strict == judge(detections, metadata, PARAMS).strict
    groups = [
        [c.score for c in judged.clauses if c.clause == i] for i in range(len(metadata["include"]))
    ]
    return pytest.approx(judged.soft), groups


def test_published_count_is_not_bounded_below():
    assert published([found()] * 5, line(clause())) == (-3.0, [[-3.0]])
    assert published([found()] * 5, line(clause("cat"), clause("car"))) == (-1.5, [[-3.0], [0.0]])
    assert published([found()] * 2, line(clause(count=3))) == (2 / 3, [[pytest.approx(2 / 3)]])


def test_published_color_counts_only_where_the_number_is_right():
    metadata = line(clause(count=2, color="red"))
    assert published([found(), found(color="blue")], metadata) == (0.75, [[1.0, 0.5]])
    assert published([found()] * 3, metadata) == (0.25, [[0.5, 0.0]])
    assert published([], metadata) == (0.0, [[0.0, 0.0]])


def test_published_position_that_is_wrong_counts_as_a_zero_and_a_one():
    assert published([at(0, 0, "cat"), at(30, 0, "car")], position_line()) == (
        1.0,
        [[1.0], [1.0, 1.0]],
    )
    assert published([at(30, 0, "cat"), at(0, 0, "car")], position_line()) == (
        0.75,
        [[1.0], [1.0, 0.0, 1.0]],
    )
    assert published([at(0, 0, "cat")], position_line()) == (
        1 / 3,
        [[0.0], [1.0, 0.0]],
    )  # nothing to refer to
    assert published([at(30, 0, "car")], position_line()) == (1 / 3, [[1.0], [0.0, 0.0]])


def test_published_position_with_a_color():
    metadata = line(clause("car"), clause("cat", color="red", position=["left of", 0]))
    car, red, blue = at(30, 0, "car"), at(0, 0, "cat"), replace(at(0, 0, "cat"), color="blue")
    assert published([car, red], metadata) == (1.0, [[1.0], [1.0, 1.0, 1.0]])
    assert published([car, blue], metadata) == (
        2 / 3,
        [[1.0], [1.0, 0.0]],
    )  # the position is not looked at
    assert published([car, red, red], metadata) == (1 / 3, [[1.0], [0.0, 0.0]])  # one 0 for both
    assert (
        len(judge([car, blue], metadata, PARAMS).clauses)
        == len(judge([car], metadata, PARAMS).clauses)
        == 4
    )


def test_published_position_that_is_wrong_cannot_be_referred_to():
    metadata = line(
        clause("car"),
        clause("cat", position=["left of", 0]),
        clause("cup", position=["left of", 1]),
        tag="position",
    )
    objects = [at(0, 0, "car"), at(30, 0, "cat"), at(10, 0, "cup")]
    assert published(objects, metadata) == (4 / 6, [[1.0], [1.0, 0.0, 1.0], [1.0, 0.0]])
    assert verdict(objects, metadata)[1] == pytest.approx(
        4 / 5
    )  # clamped: the cup is left of the cat


# ---------------------------------------------------------------- properties

NAMES = ("cat", "car", "cup")
boxes = st.tuples(*[st.integers(0, 30)] * 4).map(
    lambda b: (float(b[0]), float(b[1]), b[0] + b[2] + 1.0, b[1] + b[3] + 1.0)
)
detections_of = st.lists(
    st.builds(
        found,
        st.sampled_from(NAMES),
        st.sampled_from((0.2, 0.3, 0.5, 0.9, 0.95)),
        boxes,
        st.sampled_from((*COLORS, None)),
    ),
    max_size=8,
)
metadata_of = st.builds(
    lambda tag, seed: sample_metadata(tag, NAMES, np.random.default_rng(seed)),
    st.sampled_from(TAGS),
    st.integers(0, 999),
)


@settings(deadline=None)
@given(detections_of, metadata_of, st.randoms(use_true_random=False))
def test_order_of_detections_never_matters(detections, metadata, random):
    shuffled = list(detections)
    random.shuffle(shuffled)
    assert judge(shuffled, metadata, PARAMS) == judge(detections, metadata, PARAMS)


@settings(deadline=None)
@given(detections_of, metadata_of)
def test_soft_is_in_the_unit_interval_and_full_only_where_strict(detections, metadata):
    judged = judge(detections, metadata, PARAMS)
    assert 0 <= judged.soft <= 1
    assert all(0 <= c.score <= 1 for c in judged.clauses)
    if judged.soft == 1:
        assert judged.strict


@settings(deadline=None)
@given(detections_of, metadata_of)
def test_strict_without_surplus_objects_is_soft_one(detections, metadata):
    wanted = {c["class"]: c["count"] for c in metadata["include"]}
    threshold = 0.9 if metadata["tag"] == "counting" else 0.3
    kept = keep_detections(detections, threshold, 16)
    exact = [d for name in kept for d in kept[name][: wanted.get(name, 0)]]
    judged = judge(exact, metadata, PARAMS)
    assert judged.strict == (judged.soft == 1)


@settings(deadline=None)
@given(boxes, boxes)
def test_relations_are_mirrored_when_the_boxes_change_places(a, b):
    mirror = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert relations(b, a) == {mirror[r] for r in relations(a, b)}


# ---------------------------------------------------------------- the reward


def test_clause_shares_by_hand():
    """A cat left of a car: one requirement of the car's clause, two of the cat's; the cat is there
    but not placed."""
    judged = judge([at(0, 0, "cat"), at(0, 30, "car")], position_line(), PARAMS)
    assert clause_shares(judged).tolist() == pytest.approx([1 / 3, 1 / 3])
    assert clause_shares(
        judge([at(0, 0, "cat")], position_line(), PARAMS)
    ).tolist() == pytest.approx([0, 1 / 3])


@settings(deadline=None)
@given(detections_of, metadata_of, st.sampled_from((PARAMS, PUBLISHED)))
def test_clause_shares_add_up_to_the_soft_reward(detections, metadata, params):
    judged = judge(detections, metadata, params)
    shares = clause_shares(judged)
    assert len(shares) == len(metadata["include"])
    assert shares.sum() == pytest.approx(judged.soft, abs=1e-6)


def record(metadata, name="geneval-test-00001"):
    return PromptRecord(name, "geneval", metadata.get("prompt", ""), metadata)


def test_reward_of_ground_truth_is_one_with_details():
    rng = np.random.default_rng(3)
    lines = [sample_metadata(tag, CLASSES, rng) for tag in TAGS]
    images = np.stack([render(sample_scene(metadata, rng)) for metadata in lines])
    reward = GenevalReward(build_detector(PARAMS), PARAMS)
    future = reward.submit(images, [record(metadata) for metadata in lines])
    assert future.done()
    result = future.result()
    assert result.scores.dtype == np.float32
    assert result.scores.tolist() == [1.0] * len(TAGS)
    for metadata, detail in zip(lines, result.details, strict=True):
        assert set(detail) == {"tag", "strict", "soft", "clauses", "found"}
        assert detail["strict"] is True
        assert detail["tag"] == metadata["tag"]
        assert len(detail["found"]) >= sum(c["count"] for c in metadata["include"])
    reward.close()


def test_details_are_plain_json():
    import json

    rng = np.random.default_rng(4)
    metadata = sample_metadata("position", CLASSES, rng)
    images = render(sample_scene(metadata, rng))[None]
    detail = (
        GenevalReward(build_detector(PARAMS), PARAMS)
        .submit(images, [record(metadata)])
        .result()
        .details[0]
    )
    assert json.loads(json.dumps(detail)) == detail


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"text": "HI"}, "no `tag` and `include`"),
        (line(clause("zebra")), "no class 'zebra'"),
        (line({"class": "cat"}), "needs a `count`"),
        (line(clause(), clause("car", position=["above", 1])), "refers to clause 1"),
    ],
)
def test_a_record_that_cannot_be_scored_is_named(metadata, message):
    reward = GenevalReward(build_detector(PARAMS), PARAMS)
    with pytest.raises(RewardError, match=f"^bad-7: .*{message}"):
        reward.submit(np.zeros((1, 64, 64, 3), np.uint8), [record(metadata, "bad-7")])


@pytest.mark.parametrize(
    "images", [np.zeros((2, 64, 64, 3), np.uint8), np.zeros((1, 64, 64, 3), np.float32)]
)
def test_images_that_do_not_fit_the_records_are_refused(images):
    with pytest.raises(RewardError, match="^bad-7: "):
        GenevalReward(build_detector(PARAMS), PARAMS).submit(
            images, [record(line(clause()), "bad-7")]
        )


def test_unknown_detector_names_the_key():
    with pytest.raises(StarError, match="rewards.geneval.detector.*'yolo'"):
        build_detector(replace(PARAMS, detector="yolo"))


@pytest.mark.parametrize(
    ("excluded", "message"),
    [
        ({"class": "unicorn", "count": 1}, "knows no class 'unicorn'"),
        ({"count": 1}, "knows no class None"),
        ({"class": "cat"}, "the exclude clause of 'cat' needs a `count` of at least 1"),
    ],
)
def test_an_exclude_clause_that_says_nothing_is_refused(excluded, message):
    """Of an unknown class there would never be too many."""
    reward = GenevalReward(build_detector(PARAMS), PARAMS)
    with pytest.raises(RewardError, match=f"^bad-1: .*{message}"):
        reward.submit(
            np.zeros((1, 64, 64, 3), np.uint8),
            [record(line(clause(), exclude=[excluded]), "bad-1")],
        )


def test_colours_are_asked_for_where_a_clause_has_one():
    class Asked:
        classes = CLASSES

        def detect(self, images, colored=None):
            self.colored = colored
            return [[] for _ in images]

    records = [
        record(line(clause("cat"), clause("car", color="red")), "a-1"),
        record(line(clause("cat")), "a-2"),
    ]
    detector = Asked()
    GenevalReward(detector, PARAMS).submit(np.zeros((2, 64, 64, 3), np.uint8), records)
    assert detector.colored == [{"car"}, set()]


def test_a_image_that_the_detector_cannot_judge_is_named():
    class Broken:
        classes = CLASSES

        def detect(self, images, colored=None):
            raise DetectionError(1, "no light")

    records = [record(line(clause()), name) for name in ("good-1", "dark-2", "good-3")]
    with pytest.raises(RewardError, match="^dark-2: .*no light"):
        GenevalReward(Broken(), PARAMS).submit(np.zeros((3, 64, 64, 3), np.uint8), records)
