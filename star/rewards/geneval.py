"""GenEval's clause logic and the reward built on it: published rules over the detections of any
detector.

Source: GenEval (Ghosh et al., arXiv 2310.11513). The soft training reward is Flow-GRPO's (arXiv
2505.05470), either as published or clamped to [0, 1] with one entry a requirement. Boxes are (x0,
y0, x1, y1) pixels, y down.

Strict and soft differ on purpose, as published: surplus objects of an ``include`` clause pass the
strict rule unless an ``exclude`` clause forbids them, but cost the soft reward ``|n - found| / n``.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass

import numpy as np

from star.config.params import GenevalParams
from star.prompts.geneval import RELATIONS
from star.prompts.records import PromptRecord
from star.rewards.base import RewardError, RewardResult, check_batch, finished
from star.rewards.detection import Detection, DetectionError, Detector

Box = tuple[float, float, float, float]
Groups = Mapping[str, Sequence[Detection]]  # kept detections of each class, best first

POSITION_MARGIN = 0.1  # of the two boxes' dimensions added
POSITION_COMPONENT = 0.5  # of the offset's norm
ZERO_OFFSET = 1e-3  # pixels


@dataclass(frozen=True)
class ClauseScore:
    """One requirement of a metadata line.

    Attributes:
        clause: index of the include clause.
        kind: count, color or position.
        name: object class.
        wanted: number of objects, colour name, or ``"left of 0"``: relation and index of the clause
            referred to.
        score: soft score, at most 1; at least 0 if clamped.
    """

    clause: int
    kind: str
    name: str
    wanted: int | str
    score: float


@dataclass(frozen=True)
class Judgement:
    """What the clauses of one record say about one image."""

    strict: bool
    soft: float
    clauses: tuple[ClauseScore, ...]


def keep_detections(
    detections: Sequence[Detection], threshold: float, max_per_class: int
) -> dict[str, list[Detection]]:
    """Detections of each class that score above ``threshold``, best first, at most
    ``max_per_class``; no NMS."""
    groups: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=_rank):
        if detection.score > threshold:
            groups.setdefault(detection.name, []).append(detection)
    return {name: found[:max_per_class] for name, found in groups.items()}


def relations(box: Box, other: Box) -> set[str]:
    """Where ``box`` lies relative to ``other``: none, one or, near a diagonal, two of `RELATIONS`.

    The offset of the centres is shortened by `POSITION_MARGIN` of the boxes' added dimensions and
    divided by the norm of the full offset; a component beyond `POSITION_COMPONENT` names a
    relation."""
    a, b = np.asarray(box, float).reshape(2, 2), np.asarray(other, float).reshape(2, 2)
    offset = a.mean(0) - b.mean(0)
    margin = POSITION_MARGIN * (np.abs(a[1] - a[0]) + np.abs(b[1] - b[0]))
    shortened = np.maximum(np.abs(offset) - margin, 0) * np.sign(offset)
    if np.all(np.abs(shortened) < ZERO_OFFSET):
        return set()
    dx, dy = shortened / np.linalg.norm(offset)
    holds = (
        dx < -POSITION_COMPONENT,
        dx > POSITION_COMPONENT,
        dy < -POSITION_COMPONENT,
        dy > POSITION_COMPONENT,
    )
    return {relation for relation, true in zip(RELATIONS, holds, strict=True) if true}


def strict_correct(groups: Groups, metadata: dict) -> bool:
    """GenEval's verdict: every include clause holds and no exclude clause does.

    An include clause looks at the best ``count`` detections of its class; all must have the colour,
    and every one must stand in the relation to every object of the clause referred to, which must
    itself hold."""
    matched: list[Sequence[Detection] | None] = []
    for clause in metadata["include"]:
        found = groups.get(clause["class"], ())[: clause["count"]]
        holds = len(found) >= clause["count"]
        if holds and "color" in clause:
            holds = all(detection.color == clause["color"] for detection in found)
        if holds and "position" in clause:
            relation, target = clause["position"]
            holds = _all_related(found, matched[target], relation)
        matched.append(found if holds else None)
    excluded = metadata.get("exclude", ())
    return None not in matched and all(
        len(groups.get(c["class"], ())) < c["count"] for c in excluded
    )


def clause_scores(
    groups: Groups, metadata: dict, published: bool = False
) -> tuple[ClauseScore, ...]:
    """Soft score of every requirement of the include clauses, in their order: count, then colour,
    then position.

    ``1 - |n - found| / n``, at least 0, for the count and, of the objects found, for the colour; 0
    or 1 for the position. Colour and position score 0 unless exactly ``count`` objects are found,
    and a position scores 0 where the clause referred to lacks its exact count.

    Args:
        groups: kept detections of each class.
        metadata: GenEval's line.
        published: Flow-GRPO's own form instead: the count's score is not bounded below; a wrong
            position adds a 0 and then a 1, and what refers to it scores 0; a clause with both a
            colour and a position has one 0 for the two where its count is wrong, and no entry for
            the position where its colour is.
    """
    scores: list[ClauseScore] = []
    exact: list[Sequence[Detection] | None] = []
    for index, clause in enumerate(metadata["include"]):
        name, count = clause["class"], clause["count"]
        found = groups.get(name, ())
        complete = len(found) == count
        closeness = _closeness(len(found), count)
        scores.append(
            ClauseScore(
                index, "count", name, count, closeness if published else max(0.0, closeness)
            )
        )
        if "color" in clause:
            colored = sum(detection.color == clause["color"] for detection in found)
            score = _closeness(colored, count) if complete else 0.0
            scores.append(ClauseScore(index, "color", name, clause["color"], score))
            complete = complete and colored == count
        if "position" in clause and (complete or "color" not in clause or not published):
            relation, target = clause["position"]
            related = complete and _all_related(found, exact[target], relation)
            wanted = f"{relation} {target}"
            scores.append(ClauseScore(index, "position", name, wanted, float(related)))
            if published and complete and not related:
                if exact[target] is not None:
                    scores.append(ClauseScore(index, "position", name, wanted, 1.0))
                complete = False
        exact.append(found if complete else None)
    return tuple(scores)


def judge(detections: Sequence[Detection], metadata: dict, params: GenevalParams) -> Judgement:
    """Strict verdict and soft reward of one image's detections; pure."""
    counting = metadata["tag"] == "counting"
    threshold = params.counting_threshold if counting else params.score_threshold
    groups = keep_detections(detections, threshold, params.max_per_class)
    scores = clause_scores(groups, metadata, params.soft == "published")
    soft = sum(score.score for score in scores) / len(scores)
    return Judgement(strict_correct(groups, metadata), soft, scores)


def clause_shares(judgement: Judgement) -> np.ndarray:
    """What each include clause's requirements contribute to the soft reward: float32 (clauses,),
    with it as sum."""
    shares = np.zeros(judgement.clauses[-1].clause + 1, np.float32)
    for score in judgement.clauses:
        shares[score.clause] += score.score / len(judgement.clauses)
    return shares


class GenevalReward:
    """GenEval-style reward of images, in this process: the soft one, in [0, 1] or, as published,
    at most 1."""

    name = "geneval"

    def __init__(self, detector: Detector, params: GenevalParams) -> None:
        self._detector = detector
        self._params = params

    def submit(self, images: np.ndarray, records: Sequence[PromptRecord]) -> "Future[RewardResult]":
        """Score images; see `star.rewards.base.Reward.submit`.

        A detail is ``{"tag", "strict", "soft", "clauses": [{"clause", "kind", "name", "wanted",
        "score"}], "found": [[class, colour, score, box]]}``; ``found`` is what the detector
        reports, thresholded or not, with a colour where the prompt asks for the class's.

        Raises:
            RewardError: a record without GenEval metadata, or with a class that the detector cannot
                see, or an image that the detector cannot judge; names the record's id.
        """
        check_batch(self.name, images, records)
        for record in records:
            self._check_record(record)
        try:
            found = self._detector.detect(
                images, [_colored_classes(record.metadata) for record in records]
            )
        except DetectionError as error:
            raise RewardError(f"{records[error.image].id}: reward geneval: {error}") from error
        details, shares = [], []
        for detections, record in zip(found, records, strict=True):
            verdict = judge(detections, record.metadata, self._params)
            shares.append(clause_shares(verdict))
            details.append(
                {
                    "tag": record.metadata["tag"],
                    "strict": verdict.strict,
                    "soft": verdict.soft,
                    "clauses": [asdict(score) for score in verdict.clauses],
                    "found": [
                        [d.name, d.color, round(d.score, 4), list(d.box)]
                        for d in sorted(detections, key=_rank)
                    ],
                }
            )
        return finished(
            RewardResult(np.array([d["soft"] for d in details], np.float32), details, shares)
        )

    def close(self) -> None:
        """Nothing to give back."""

    def _check_record(self, record: PromptRecord) -> None:
        include = record.metadata.get("include")
        if not include or "tag" not in record.metadata:
            raise RewardError(
                f"{record.id}: reward geneval: the record's metadata has no `tag` and `include`; "
                "score it with its own task's reward, or give it a GenEval metadata line"
            )
        for clause in (*include, *record.metadata.get("exclude", ())):
            name = clause.get("class")
            if name not in self._detector.classes:
                raise RewardError(
                    f"{record.id}: reward geneval: the detector knows no class {name!r}; "
                    f"known: {', '.join(self._detector.classes)}"
                )
        for clause in record.metadata.get("exclude", ()):
            if clause.get("count", 0) < 1:
                raise RewardError(
                    f"{record.id}: reward geneval: the exclude clause of {clause['class']!r} needs a `count` of at "
                    "least 1"
                )
        for index, clause in enumerate(include):
            if clause.get("count", 0) < 1:
                raise RewardError(
                    f"{record.id}: reward geneval: include clause {index} needs a `count` of at least 1"
                )
            if "position" in clause and not 0 <= clause["position"][1] < index:
                raise RewardError(
                    f"{record.id}: reward geneval: include clause {index} refers to clause {clause['position'][1]}; "
                    "a position refers to an earlier clause"
                )


def _colored_classes(metadata: dict) -> set[str]:
    """Classes whose colours decide."""
    return {clause["class"] for clause in metadata["include"] if "color" in clause}


def _rank(detection: Detection) -> tuple:
    """Best first; ties are broken by content, so that the order of detections never matters."""
    return (-detection.score, detection.name, detection.box, detection.color or "")


def _closeness(found: int, count: int) -> float:
    return 1 - abs(count - found) / count


def _all_related(
    found: Sequence[Detection], targets: Sequence[Detection] | None, relation: str
) -> bool:
    return targets is not None and all(
        relation in relations(a.box, b.box) for a in found for b in targets
    )
