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
    rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:['’-][^\W_{_UNSPACED}]+)*|[\u2600-\u27bf\U0001f300-\U0001faff]"
)

Kinds = dict[int, str]  # index of a word of the prompt -> its kind


def marked(prompt: str, spans: Iterable[tuple[int, int, str]]) -> Kinds:
    """A word has the kind of the span that covers at least half of its letters."""
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


def precision_recall(true: Kinds, guess: Kinds, kind: str) -> tuple[int, int, int]:
    """Words right (by their kind too), words found and words labelled, of one kind or of
    ``all``."""
    right, guessed, known = (
        sum(kind in ("all", of) for of in words.values())
        for words in ({i: of for i, of in guess.items() if true.get(i) == of}, guess, true)
    )
    return right, guessed, known


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str, str], tuple[float, ...]]:
    """Of (split, group, kind): precision and recall over all words, then their means over
    prompts."""
    rows = [json.loads(line) for line in LABELS.read_text("utf-8").splitlines()]
    assert len(rows) >= 150
    pairs = [(row, labelled(row), found(row)) for row in rows]
    scores: dict[tuple[str, str, str], tuple[float, ...]] = {}
    print(
        "  split     group    kind      prompts   words   precision recall   a prompt: precision recall"
    )
    for split in ("dev", "held-out", "whole"):
        for group in TASKS:
            part = [
                (true, guess)
                for row, true, guess in pairs
                if row["group"] == group and split in (row["split"], "whole")
            ]
            kinds = sorted({of for true, _ in part for of in true.values()})
            for kind in [*kinds, "all"] if len(kinds) > 1 else kinds:
                counts = [precision_recall(true, guess, kind) for true, guess in part]
                counts = [count for count in counts if count[1] or count[2]]
                right, guessed, known = map(sum, zip(*counts, strict=True))
                # A prompt where nothing was found, or nothing was to be found, scores 0.
                means = [
                    sum(c[0] / max(c[which], 1) for c in counts) / len(counts) for which in (1, 2)
                ]
                score = scores[split, group, kind] = (
                    right / max(guessed, 1),
                    right / max(known, 1),
                    *means,
                )
                print(
                    f"  {split:9} {group:8} {kind:8} {len(counts):8} {known:7}   {score[0]:9.3f} {score[1]:6.3f}"
                    f"   {score[2]:19.3f} {score[3]:6.3f}"
                )
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
