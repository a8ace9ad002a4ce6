"""GenEval's rules over the detections of any detector, and the reward built on them.

Source: GenEval (Ghosh et al., arXiv 2310.11513). The soft reward is Flow-GRPO's (arXiv 2505.05470),
as published or clamped to [0, 1] with one entry per requirement.

Strict and soft differ on purpose, as published. Surplus objects of an ``include`` clause cost the
soft reward, but they pass the strict rule, unless an ``exclude`` clause forbids them."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass

import numpy as np

from star.config.params import GenevalParams
from star.prompts.geneval import RELATIONS, check_clauses
from star.prompts.records import PromptRecord
from star.rewards.base import Reward, RewardError, RewardResult, check_batch, finished
from star.rewards.detection import Box, Detection, DetectionError, Detector
from star.system.errors import StarError

Detections = Sequence[Detection]
Groups = Mapping[str, Detections]  # kept detections of each class, best first

POSITION_MARGIN = 0.1  # of the two boxes' dimensions added
POSITION_COMPONENT = 0.5  # of the offset's norm
ZERO_OFFSET = 1e-3  # pixels


@dataclass(frozen=True)
class ClauseScore:
    """One requirement of a metadata line."""

    clause: int  # index of the include clause
    kind: str  # count, color or position
    name: str  # object class
    wanted: int | str  # number, colour name, or "left of 0": relation to the object of clause 0
    score: float  # soft score, at most 1; at least 0 if clamped


@dataclass(frozen=True)
class Judgement:
    """What the clauses of one record say about one image."""

    strict: bool
    soft: float
    clauses: list[ClauseScore]


def keep_detections(detections: Detections, threshold: float, max_per_class: int) -> Groups:
    """Group by class what scores above ``threshold``, best first, at most ``max_per_class``."""
    groups: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=_rank):
        if detection.score > threshold:
            groups.setdefault(detection.name, []).append(detection)
    return {name: found[:max_per_class] for name, found in groups.items()}


def relations(box: Box, other: Box) -> set[str]:
    """Say where ``box`` lies relative to ``other``: up to two of `RELATIONS`.

    The offset of the centres is shortened by `POSITION_MARGIN` of the boxes' added dimensions and
    divided by the norm of the full offset. A component beyond `POSITION_COMPONENT` names a
    relation."""
    a, b = np.asarray(box, float).reshape(2, 2), np.asarray(other, float).reshape(2, 2)
    offset = a.mean(0) - b.mean(0)
    margin = POSITION_MARGIN * (np.abs(a[1] - a[0]) + np.abs(b[1] - b[0]))
    shortened = np.maximum(np.abs(offset) - margin, 0) * np.sign(offset)
    if np.all(np.abs(shortened) < ZERO_OFFSET):
        return set()
    dx, dy = shortened / np.linalg.norm(offset)
    lengths = zip(RELATIONS, (-dx, dx, -dy, dy), strict=True)
    return {relation for relation, length in lengths if length > POSITION_COMPONENT}


def strict_correct(groups: Groups, metadata: dict) -> bool:
    """Return GenEval's verdict: every include clause holds and no exclude clause does.

    An include clause looks at the best ``count`` detections of its class. All must have the colour.
    Each must stand in the relation to each object of the clause referred to, which must itself
    hold."""
    matched: list[Detections | None] = []
    for clause in metadata["include"]:
        found = groups.get(clause["class"], ())[: clause["count"]]
        holds = len(found) >= clause["count"]
        if "color" in clause:
            holds = holds and all(detection.color == clause["color"] for detection in found)
        if "position" in clause:
            relation, target = clause["position"]
            holds = holds and _all_related(found, matched[target], relation)
        matched.append(found if holds else None)
    excluded = metadata.get("exclude", ())
    return None not in matched and all(
        len(groups.get(c["class"], ())) < c["count"] for c in excluded
    )


def clause_scores(groups: Groups, metadata: dict, published: bool) -> list[ClauseScore]:
    """Score every requirement of the include clauses in order: count, then colour, then position.

    Count, and colour of the objects found: ``1 - |n - found| / n``, at least 0. Position: 0 or 1.
    Colour and position score 0 unless exactly ``count`` objects are found, and a position scores 0
    where the clause referred to lacks its exact count.

    ``published`` is Flow-GRPO's own form. The count's score is not bounded below. A wrong position
    adds a 0 and then a 1, and what refers to it scores 0. A clause with colour and position has one
    0 for both where its count is wrong, and no position where its colour is."""
    scores: list[ClauseScore] = []
    exact: list[Detections | None] = []
    for index, clause in enumerate(metadata["include"]):
        found, count = groups.get(clause["class"], ()), clause["count"]
        complete = len(found) == count
        closeness = _closeness(len(found), count)
        parts = [("count", count, closeness if published else max(0.0, closeness))]
        if "color" in clause:
            colored = sum(detection.color == clause["color"] for detection in found)
            score = _closeness(colored, count) if complete else 0.0
            parts.append(("color", clause["color"], score))
            complete = complete and colored == count
        if "position" in clause and (complete or "color" not in clause or not published):
            relation, target = clause["position"]
            wanted = f"{relation} {target}"
            related = complete and _all_related(found, exact[target], relation)
            parts.append(("position", wanted, float(related)))
            if published and complete and not related:
                if exact[target] is not None:
                    parts.append(("position", wanted, 1.0))
                complete = False
        scores += [ClauseScore(index, kind, clause["class"], *rest) for kind, *rest in parts]
        exact.append(found if complete else None)
    return scores


def judge(detections: Detections, metadata: dict, params: GenevalParams) -> Judgement:
    """Return the strict verdict and the soft reward of one image's detections."""
    counting = metadata["tag"] == "counting"
    threshold = params.counting_threshold if counting else params.score_threshold
    groups = keep_detections(detections, threshold, params.max_per_class)
    scores = clause_scores(groups, metadata, params.soft == "published")
    soft = sum(score.score for score in scores) / len(scores)
    return Judgement(strict_correct(groups, metadata), soft, scores)


def clause_shares(judgement: Judgement) -> np.ndarray:
    """Return each include clause's part of the soft reward: float32 (clauses,); their sum is it."""
    shares = np.zeros(judgement.clauses[-1].clause + 1, np.float32)
    for score in judgement.clauses:
        shares[score.clause] += score.score / len(judgement.clauses)
    return shares


class GenevalReward(Reward):
    """The soft reward, in [0, 1] or, as published, at most 1.

    A detail is ``{"tag", "strict", "soft", "clauses": [{"clause", "kind", "name", "wanted",
    "score"}], "found": [[class, colour, score, box]]}``. ``found`` is all that the detector
    reports, with a colour where the prompt asks for one."""

    name = "geneval"

    def __init__(self, detector: Detector, params: GenevalParams) -> None:
        self._detector, self._params = detector, params

    def submit(self, images: np.ndarray, records: Sequence[PromptRecord]) -> "Future[RewardResult]":
        """Score images in this process.

        Raises:
            RewardError: a record without valid GenEval metadata, or with a class that the detector
                does not know, or an image that it cannot judge; begins with the record's id."""
        check_batch(self.name, images, records)
        for record in records:
            self._check(record)
        asked = [
            {clause["class"] for clause in record.metadata["include"] if "color" in clause}
            for record in records
        ]
        try:
            found = self._detector.detect(images, asked)
        except DetectionError as error:
            raise RewardError(f"{records[error.image].id}: reward geneval: {error}") from error
        details, shares = [], []
        for detections, record in zip(found, records, strict=True):
            verdict = judge(detections, record.metadata, self._params)
            shares.append(clause_shares(verdict))
            seen = [
                [d.name, d.color, round(d.score, 4), list(d.box)]
                for d in sorted(detections, key=_rank)
            ]
            details.append({"tag": record.metadata["tag"], **asdict(verdict), "found": seen})
        scores = np.array([detail["soft"] for detail in details], np.float32)
        return finished(RewardResult(scores, details, shares))

    def _check(self, record: PromptRecord) -> None:
        where = f"{record.id}: reward geneval"
        if not record.metadata.get("include") or "tag" not in record.metadata:
            raise RewardError(
                f"{where}: the record's metadata has no `tag` and `include`; "
                "score it with its own task's reward, or give it a GenEval metadata line"
            )
        try:
            check_clauses(record.metadata, self._detector.classes, where)
        except StarError as error:
            raise RewardError(str(error)) from error


def _rank(detection: Detection) -> tuple:
    """Order best first; the content breaks ties, so the order of detections never matters."""
    return (-detection.score, detection.name, detection.box, detection.color or "")


def _closeness(found: int, count: int) -> float:
    return 1 - abs(count - found) / count


def _all_related(found: Detections, targets: Detections | None, relation: str) -> bool:
    return targets is not None and all(
        relation in relations(a.box, b.box) for a in found for b in targets
    )
