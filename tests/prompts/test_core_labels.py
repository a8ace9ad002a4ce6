"""Core content against labels written by hand, without sight of the rules (conventions:
data/core_content.md).

Half of the prompts of every style, the split ``dev``, may be looked at when the rules change; of
``held-out`` only the scores. `pytest -rP tests/prompts/test_core_labels.py` prints the table."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from star.prompts.core_content import extract_core
from star.prompts.records import PromptRecord
from star.system.errors import StarError

LABELS = Path(__file__).parents[1] / "data" / "core_content.jsonl"
TASKS = {"geneval": "geneval", "quoted": "ocr", "free": "preference"}
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\U00020000-\U0002ffff"  # kana and Han: a character is a word
# Emoji can stand in for words, so each is one as well.
_UNIT = re.compile(
    rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:['’-][^\W_{_UNSPACED}]+)*"
    r"|[\u2600-\u27bf\U0001f300-\U0001faff]"
)

Kinds = dict[int, str]  # index of a word of the prompt -> its kind


def marked(prompt: str, spans: Iterable[tuple[int, int, str]]) -> Kinds:
    """Give each word the kind of the span that covers at least half of its letters."""
    units = [match.span() for match in _UNIT.finditer(prompt)]
    return {
        index: kind
        for start, end, kind in spans
        for index, (a, b) in enumerate(units)
        if 2 * (min(b, end) - max(a, start)) >= b - a
    }


def labelled(row: dict) -> Kinds:
    spans = []
    for text, kind, *earlier in row["spans"]:
        start = -1
        for _ in range(1 + sum(earlier)):
            start = row["prompt"].index(text, start + 1)
        spans.append((start, start + len(text), kind))
    return marked(row["prompt"], spans)


def found(row: dict) -> Kinds:
    record = PromptRecord("label-00001", TASKS[row["group"]], row["prompt"], row["metadata"])
    try:
        core = extract_core(record)
    except StarError:  # a refused prompt has nothing found
        return {}
    spans = [(span.start, span.end, span.kind.replace("content", "subject")) for span in core]
    return marked(row["prompt"], spans)


def precision_recall(pairs: list[tuple[Kinds, Kinds]], kind: str) -> tuple[float, ...]:
    """Return precision and recall over all words, then their means over prompts.

    Of one kind or of ``all``; a prompt where nothing was found, or nothing was to be found, scores
    0."""
    counts = []
    for true, guess in pairs:
        right = {index: of for index, of in guess.items() if true.get(index) == of}
        counted = [
            sum(kind in ("all", of) for of in kinds.values()) for kinds in (right, guess, true)
        ]
        counts += [counted] if counted[1] or counted[2] else []
    right, guessed, known = map(sum, zip(*counts, strict=True))
    shares = [[count[0] / max(count[which], 1) for count in counts] for which in (1, 2)]
    return right / max(guessed, 1), right / max(known, 1), *(sum(s) / len(s) for s in shares)


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str, str], tuple[float, ...]]:
    """Return the `precision_recall` of each split, group and kind, and print it."""
    rows = [json.loads(line) for line in LABELS.read_text("utf-8").splitlines()]
    assert len(rows) >= 150
    read = [(row["split"], row["group"], labelled(row), found(row)) for row in rows]
    scores: dict[tuple[str, str, str], tuple[float, ...]] = {}
    print("split     group    kind      precision recall   a prompt: precision recall")
    for split in ("dev", "held-out", "whole"):
        for group in TASKS:
            part = [pair for s, g, *pair in read if g == group and split in (s, "whole")]
            for kind in (*sorted({of for true, _ in part for of in true.values()}), "all"):
                scores[split, group, kind] = score = precision_recall(part, kind)
                figures = " ".join(f"{share:8.3f}" for share in score)
                print(f"{split:9} {group:8} {kind:9} {figures}")
    return scores


@pytest.mark.parametrize("split", ["held-out", "whole"])
@pytest.mark.parametrize(
    ("group", "kind", "least"),
    [
        ("geneval", "all", 0.95),
        ("quoted", "text", 0.95),
        ("quoted", "carrier", 0.90),
        ("free", "subject", 0.85),
    ],
)
def test_precision_and_recall(table, split, group, kind, least):
    assert min(table[split, group, kind]) >= least, table[split, group, kind]
