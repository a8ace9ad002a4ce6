"""GenEval's rules: hand-worked cases of each rule and boundary, properties, the reward."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star.miniature.world import CLASSES, render, sample_scene
from star.prompts.geneval import COLORS, TAGS, sample_metadata
from star.prompts.records import PromptRecord
from star.rewards.base import RewardError
from star.rewards.detection import Detection, DetectionError
from star.rewards.factory import build_detector
from star.rewards.geneval import GenevalReward, clause_shares, judge, keep_detections, relations
from tests.helpers.rewards import geneval_params

PARAMS, PUBLISHED = geneval_params(), geneval_params(soft="published")
MASK = np.zeros((2, 2), bool)
BLANK = np.zeros((1, 64, 64, 3), np.uint8)


def found(name="cat", score=0.99, box=(0.0, 0.0, 10.0, 10.0), color="red"):
    return Detection(name, score, box, MASK, color)


def at(x, y, name="cat", color="red"):
    return found(name, box=(x - 5.0, y - 5.0, x + 5.0, y + 5.0), color=color)


def line(*include, tag="two_object", **more):
    return {"tag": tag, "include": list(include), "prompt": "a photo", **more}


def clause(name="cat", count=1, **more):
    return {"class": name, "count": count, **more}


def verdict(detections, metadata):
    judged = judge(detections, metadata, PARAMS)
    return judged.strict, judged.soft


# ---------------------------------------------------------------- which detections are kept


@pytest.mark.parametrize(
    ("tag", "score", "kept"),
    [
        ("single_object", 0.3, False),
        ("single_object", 0.3 + 1e-9, True),
        ("counting", 0.9, False),
        ("counting", 0.9 + 1e-9, True),
    ],
)
def test_score_must_exceed_the_threshold_of_the_tag(tag, score, kept):
    assert verdict([found(score=score)], line(clause(), tag=tag)) == (kept, float(kept))


def test_the_seventeenth_detection_of_a_class_is_dropped_and_it_is_the_worst():
    detections = [found(score=0.5 + 0.01 * i) for i in range(17)] + [found("dog", 0.4)]
    kept = keep_detections(detections, 0.3, 16)
    assert [len(kept["cat"]), len(kept["dog"])] == [16, 1]
    assert [kept["cat"][0].score, kept["cat"][-1].score] == pytest.approx([0.66, 0.51])


# ---------------------------------------------------------------- relations


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


# ---------------------------------------------------------------- strict and soft

LEFT = line(clause("car"), clause("cat", position=["left of", 0]), tag="position")
ALONE = [at(0, 0, "cat")]
PLACED, MISPLACED = [*ALONE, at(30, 0, "car")], [at(30, 0, "cat"), at(0, 0, "car")]
BOTH, RED = line(clause("cat"), clause("car")), line(clause(color="red"), tag="colors")
COUNTED = line(clause(count=3), tag="counting", exclude=[clause(count=4)])
ONE_DOG = line(clause("cat"), exclude=[clause("dog", count=2)])
TWO_RED = line(clause(count=2, color="red"))
CARS = [at(30, 0, "car"), at(60, 0, "car")]
LEFT_OF_TWO = line(clause("car", 2), clause("cat", position=["left of", 0]), tag="position")
LEFT_OF_BLUE = line(clause("car", color="blue"), clause("cat", position=["left of", 0]))


def colored(*colors):
    return [found(score=0.9 - 0.1 * i, color=color) for i, color in enumerate(colors)]


@pytest.mark.parametrize(
    ("detections", "metadata", "strict", "soft"),
    [
        ([found("cat"), found("car")], BOTH, True, 1.0),
        ([found("cat")], BOTH, False, 0.5),
        ([], BOTH, False, 0.0),
        # With its exclude clause, counting wants the exact number; overlapping objects all count.
        ([found()] * 2, COUNTED, False, 2 / 3),
        ([found()] * 3, COUNTED, True, 1.0),
        ([found()] * 4, COUNTED, False, 2 / 3),
        ([found()] * 9, COUNTED, False, 0.0),
        # Without, a surplus passes the strict rule and costs the soft one.
        ([found()] * 2, line(clause()), True, 0.0),
        ([found()] * 5, line(clause()), True, 0.0),
        ([found()] * 3, line(clause(count=2)), True, 0.5),
        # An exclude clause counts every kept detection of its class.
        ([found(), found("dog")], ONE_DOG, True, 1.0),
        ([found(), found("dog"), found("dog", 0.31)], ONE_DOG, False, 1.0),
        ([found(), found("dog"), found("dog", 0.3)], ONE_DOG, True, 1.0),
        (colored("red"), RED, True, 1.0),
        (colored("blue"), RED, False, 0.5),
        (colored(None), RED, False, 0.5),
        ([], RED, False, 0.0),
        (colored("red", "blue"), TWO_RED, False, 0.75),  # count 1, colour 1/2
        (colored("red", "red", "blue"), TWO_RED, True, 0.25),  # the third is not looked at
        (colored("red", "blue", "red"), TWO_RED, False, 0.25),  # count 1/2, colour 0
        # A position looks from its clause to the one referred to.
        (PLACED, LEFT, True, 1.0),
        (MISPLACED, LEFT, False, 2 / 3),
        ([*ALONE, at(0, 0, "car")], LEFT, False, 2 / 3),
        (ALONE, LEFT, False, 1 / 3),  # nothing to refer to
        (PLACED[1:], LEFT, False, 1 / 3),
        # It holds for every pair of the best detections, and not to a clause that fails its colour.
        ([*ALONE, *CARS], LEFT_OF_TWO, True, 1.0),
        ([at(45, 0, "cat"), *CARS], LEFT_OF_TWO, False, 2 / 3),
        (PLACED, LEFT_OF_BLUE, False, 0.5),  # counts 1 1, colour 0, position 0
    ],
)
def test_strict_and_soft_by_hand(detections, metadata, strict, soft):
    assert verdict(detections, metadata) == (strict, pytest.approx(soft))


# ---------------------------------------------------------------- the published form, soft

RED_LEFT = line(clause("car"), clause("cat", color="red", position=["left of", 0]))
CHAIN = line(*LEFT["include"], clause("cup", position=["left of", 1]))
CAR, CAT, BLUE = at(30, 0, "car"), at(0, 0), at(0, 0, color="blue")


@pytest.mark.parametrize(
    ("detections", "metadata", "soft", "groups"),
    [
        ([found()] * 5, line(clause()), -3.0, [[-3.0]]),  # the count has no lower bound
        ([found()] * 5, line(clause("cat"), clause("car")), -1.5, [[-3.0], [0.0]]),
        ([found()] * 2, line(clause(count=3)), 2 / 3, [[2 / 3]]),
        ([found(), found(color="blue")], TWO_RED, 0.75, [[1.0, 0.5]]),
        ([found()] * 3, TWO_RED, 0.25, [[0.5, 0.0]]),  # colour only where the number is right
        ([], TWO_RED, 0.0, [[0.0, 0.0]]),
        (PLACED, LEFT, 1.0, [[1.0], [1.0, 1.0]]),
        (MISPLACED, LEFT, 0.75, [[1.0], [1.0, 0.0, 1.0]]),  # a wrong position: a 0 and a 1
        (ALONE, LEFT, 1 / 3, [[0.0], [1.0, 0.0]]),  # nothing to refer to
        (PLACED[1:], LEFT, 1 / 3, [[1.0], [0.0, 0.0]]),
        ([CAR, CAT], RED_LEFT, 1.0, [[1.0], [1.0, 1.0, 1.0]]),
        ([CAR, BLUE], RED_LEFT, 2 / 3, [[1.0], [1.0, 0.0]]),  # the position is not looked at
        ([CAR, CAT, CAT], RED_LEFT, 1 / 3, [[1.0], [0.0, 0.0]]),  # one 0 for both
        # What is misplaced cannot be referred to.
        ([*MISPLACED, at(10, 0, "cup")], CHAIN, 4 / 6, [[1.0], [1.0, 0.0, 1.0], [1.0, 0.0]]),
    ],
)
def test_published_form_by_hand(detections, metadata, soft, groups):
    judged = judge(detections, metadata, PUBLISHED)
    assert judged.soft == pytest.approx(soft)
    assert judged.strict == judge(detections, metadata, PARAMS).strict
    for index, scores in enumerate(groups):
        assert [c.score for c in judged.clauses if c.clause == index] == pytest.approx(scores)


def test_the_clamped_form_has_one_entry_a_requirement():
    assert [len(judge(d, RED_LEFT, PARAMS).clauses) for d in ([CAR, BLUE], [CAR])] == [4, 4]
    cup = at(10, 0, "cup")  # left of the cat, wherever the cat is
    assert verdict([*MISPLACED, cup], CHAIN)[1] == pytest.approx(4 / 5)


# ---------------------------------------------------------------- properties

NAMES = ("cat", "car", "cup")
boxes = st.tuples(*[st.integers(0, 30)] * 4).map(
    lambda b: (float(b[0]), float(b[1]), b[0] + b[2] + 1.0, b[1] + b[3] + 1.0)
)
scores = st.sampled_from((0.2, 0.3, 0.5, 0.9, 0.95))
objects = st.builds(found, st.sampled_from(NAMES), scores, boxes, st.sampled_from((*COLORS, None)))
detections_of = st.lists(objects, max_size=8)
metadata_of = st.builds(
    lambda tag, seed: sample_metadata(tag, NAMES, np.random.default_rng(seed)),
    st.sampled_from(TAGS),
    st.integers(0, 999),
)


@settings(deadline=None)
@given(detections_of, metadata_of, st.randoms(use_true_random=False))
def test_order_of_detections_never_matters(detections, metadata, random):
    shuffled = random.sample(detections, len(detections))
    assert judge(shuffled, metadata, PARAMS) == judge(detections, metadata, PARAMS)


@settings(deadline=None)
@given(detections_of, metadata_of, st.sampled_from((PARAMS, PUBLISHED)))
def test_soft_is_bounded_the_sum_of_its_shares_and_full_only_where_strict(
    detections, metadata, params
):
    judged = judge(detections, metadata, params)
    shares = clause_shares(judged)
    assert shares.shape == (len(metadata["include"]),) and shares.dtype == np.float32
    assert shares.sum() == pytest.approx(judged.soft, abs=1e-6)
    if params is PARAMS:
        assert all(0 <= c.score <= 1 for c in judged.clauses) and 0 <= judged.soft <= 1
        assert judged.strict or judged.soft < 1


@settings(deadline=None)
@given(detections_of, metadata_of)
def test_strict_without_surplus_objects_is_soft_one(detections, metadata):
    wanted = {c["class"]: c["count"] for c in metadata["include"]}
    kept = keep_detections(detections, 0.9 if metadata["tag"] == "counting" else 0.3, 16)
    exact = [d for name in kept for d in kept[name][: wanted.get(name, 0)]]
    judged = judge(exact, metadata, PARAMS)
    assert judged.strict == (judged.soft == 1)


@settings(deadline=None)
@given(boxes, boxes)
def test_relations_are_mirrored_when_the_boxes_change_places(a, b):
    mirror = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert relations(b, a) == {mirror[r] for r in relations(a, b)}


def test_clause_shares_by_hand():
    """One requirement of the car's clause, two of the cat's, which is there but not placed."""
    shares = clause_shares(judge([*ALONE, at(0, 30, "car")], LEFT, PARAMS))
    assert shares.tolist() == pytest.approx([1 / 3, 1 / 3])
    assert clause_shares(judge(ALONE, LEFT, PARAMS)).tolist() == pytest.approx([0, 1 / 3])


# ---------------------------------------------------------------- the reward


class Given:
    """A detector that finds nothing, or fails at an image."""

    classes = CLASSES

    def __init__(self, error=None):
        self.error, self.colored = error, None

    def detect(self, images, colored=None):
        self.colored = colored
        if self.error:
            raise self.error
        return [[] for _ in images]


def record(metadata, name="geneval-test-00001"):
    return PromptRecord(name, "geneval", metadata.get("prompt", ""), metadata)


def test_reward_of_ground_truth_is_one_with_details():
    rng = np.random.default_rng(3)
    lines = [sample_metadata(tag, CLASSES, rng) for tag in TAGS]
    images = np.stack([render(sample_scene(metadata, rng)) for metadata in lines])
    reward = GenevalReward(build_detector(PARAMS), PARAMS)
    future = reward.submit(images, [record(metadata) for metadata in lines])
    reward.close()
    assert future.done()
    result = future.result()
    assert result.scores.dtype == np.float32 and result.scores.tolist() == [1.0] * len(TAGS)
    assert json.loads(json.dumps(result.details)) == result.details
    for metadata, detail in zip(lines, result.details, strict=True):
        assert set(detail) == {"tag", "strict", "soft", "clauses", "found"}
        assert detail["strict"] is True and detail["tag"] == metadata["tag"]
        assert len(detail["found"]) >= sum(c["count"] for c in metadata["include"])


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"text": "HI"}, "`tag` and `include`"),
        (line(clause("zebra")), "'zebra'"),
        (line({"class": "cat"}), "'count'"),
        (line(clause(), clause("car", position=["above", 1])), "clause 1"),
        # Of a class that no detector knows there would never be too many.
        (line(clause(), exclude=[clause("unicorn")]), "'unicorn'"),
        (line(clause(), exclude=[{"count": 1}]), "'class'"),
        (line(clause(), exclude=[clause(count=0)]), "count 0"),
    ],
)
def test_a_record_that_cannot_be_scored_is_named(metadata, named):
    with pytest.raises(RewardError, match=f"^bad-7: .*{named}"):
        GenevalReward(Given(), PARAMS).submit(BLANK, [record(metadata, "bad-7")])


def test_colours_are_asked_for_where_a_clause_has_one():
    detector, lines = Given(), [line(clause("cat"), clause("car", color="red")), line(clause())]
    GenevalReward(detector, PARAMS).submit(np.concatenate([BLANK] * 2), list(map(record, lines)))
    assert detector.colored == [{"car"}, set()]


def test_an_image_that_the_detector_cannot_judge_is_named():
    records = [record(line(clause()), name) for name in ("good-1", "dark-2", "good-3")]
    detector = Given(DetectionError(1, "no light"))
    with pytest.raises(RewardError, match="^dark-2: .*no light"):
        GenevalReward(detector, PARAMS).submit(np.concatenate([BLANK] * 3), records)
