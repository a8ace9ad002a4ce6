"""Core spans of every form of prompt."""

import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from star.miniature.world import CLASSES
from star.prompts.core_content import extract_core
from star.prompts.geneval import (
    COCO_CLASSES,
    COUNT_WORDS,
    TAGS,
    clauses_in,
    plural,
    sample_metadata,
)
from star.prompts.ocr import TEMPLATES
from star.prompts.records import PromptRecord
from star.system.errors import StarError
from tests.helpers.records import record_of, text_of

EXAMPLES = yaml.safe_load(
    (Path(__file__).parents[1] / "data" / "core_examples.yaml").read_text(encoding="utf-8")
)


def spelled(record: PromptRecord) -> list[tuple[str, str, int | None]]:
    return [(text_of(record, span), span.kind, span.clause) for span in extract_core(record)]


# ---------------------------------------------------------------- GenEval's forms


def test_words_that_occur_twice_are_told_apart():
    colors = ("red", "orange")
    include = [{"class": "orange", "count": 1, "color": color} for color in colors]
    prompt = "a photo of a red orange and an orange orange"
    record = record_of(prompt, {"include": include}, "geneval")
    objects = [("red", "color", 0), ("orange", "object", 0)]
    assert spelled(record) == [*objects, ("orange", "color", 1), ("orange", "object", 1)]
    assert [span.start for span in extract_core(record)] == [13, 17, 31, 38]


@pytest.mark.parametrize("noun", ["couches", "couchs", "couch"])
def test_both_spellings_of_a_plural_are_one_span(noun):
    metadata = {"include": [{"class": "couch", "count": 3}]}
    record = record_of(f"a photo of three {noun}", metadata, "geneval")
    assert spelled(record) == [("three", "count", 0), (noun, "object", 0)]


def test_a_prompt_that_departs_from_its_form_is_read_as_a_free_one():
    metadata = {"include": [{"class": "person", "count": 2}]}
    assert clauses_in("two people on a red couch") == []
    record = record_of("two people on a red couch", metadata, "geneval")
    assert spelled(record) == [("two people", "subject", None), ("red couch", "subject", None)]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(TAGS), st.sampled_from([CLASSES, COCO_CLASSES]), st.integers(0, 2**32))
def test_every_form_gives_exactly_the_words_of_its_clauses(tag, classes, seed):
    metadata = sample_metadata(tag, classes, np.random.default_rng(seed))
    assert clauses_in(metadata["prompt"]) == metadata["include"]
    record = record_of(metadata["prompt"], metadata, "geneval")
    expected = []
    for index, clause in enumerate(metadata["include"]):
        several = clause["count"] > 1
        expected.append((plural(clause["class"]) if several else clause["class"], "object", index))
        if several:
            expected.append((COUNT_WORDS[clause["count"]], "count", index))
        if "color" in clause:
            expected.append((clause["color"], "color", index))
        if "position" in clause:
            expected.append((clause["position"][0], "relation", index))
    assert sorted(spelled(record)) == sorted(expected)
    starts = [span.start for span in extract_core(record)]
    assert starts == sorted(starts)
    # What is left over is the frame alone: articles, "photo of", "and".
    rest = list(record.prompt)
    for span in extract_core(record):
        rest[span.start : span.end] = " " * (span.end - span.start)
    assert set("".join(rest).split()) <= {"a", "an", "photo", "of", "and"}


def test_captions_of_the_preference_task_are_read_by_the_same_grammar():
    metadata = sample_metadata("color_attr", CLASSES, np.random.default_rng(0))
    for prompt, known, task in (
        (metadata["prompt"], metadata, "geneval"),
        ('a sign that says "HI"', {"text": "HI"}, "ocr"),
    ):
        assert extract_core(record_of(prompt, known)) == extract_core(
            record_of(prompt, known, task)
        )


# ---------------------------------------------------------------- signs


@pytest.mark.parametrize(("prompt", "text", "carrier"), EXAMPLES["signs"])
def test_the_first_quotation_is_the_text_and_the_nearest_thing_carries_it(prompt, text, carrier):
    expected = {(text, "text", None)} | ({(carrier, "carrier", None)} if carrier else set())
    assert set(spelled(record_of(prompt, {"text": text}, "ocr"))) == expected


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_has_a_carrier(template):
    found = spelled(record_of(template.format("SUN"), {"text": "SUN"}, "ocr"))
    assert sorted(kind for _, kind, _ in found) == ["carrier", "text"]


# ---------------------------------------------------------------- free prompts


@pytest.mark.parametrize(("prompt", "subjects"), EXAMPLES["subjects"])
def test_subjects_without_style(prompt, subjects):
    assert spelled(record_of(prompt)) == [(text, "subject", None) for text in subjects]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("8k, highly detailed", ["8k", "highly", "detailed"]),
        ("of the", ["of", "the"]),
        ("by Monet", ["Monet"]),
    ],
)
def test_where_the_rules_find_nothing_every_content_word_counts(prompt, expected):
    assert spelled(record_of(prompt)) == [(word, "content", None) for word in expected]


LONG = "A tall man in a green coat walks two dogs, 8k, by John Smith. "


@pytest.mark.parametrize("piece", [LONG, "red ", "cup of ", "a-", "猫の", "'a ", "“", "x, "])
def test_ten_thousand_characters_take_no_longer_than_their_words(piece):
    def seconds(length: int) -> float:
        prompt = (piece * length)[:length] + ' a cat "HI"'
        start = time.perf_counter()
        for task in ("preference", "ocr"):
            extract_core(record_of(prompt, task=task))
        return time.perf_counter() - start

    seconds(1000)
    assert seconds(10_000) < 2.0  # quadratic rules have taken ten seconds and more


@pytest.mark.parametrize(
    ("prompt", "task", "told"),
    [("...", "preference", "'...' has no word"), ("a sign: OPEN", "ocr", "no quoted span")],
)
def test_a_prompt_without_any_core_is_named(prompt, task, told):
    with pytest.raises(StarError, match=f"prompt some-00001: {told}"):
        extract_core(record_of(prompt, task=task))


words = ("a", "of", "cat", "8k", "trending on artstation", "by", "Monet", "in", "photo of", "style")
marks = (",", ".", " - ", '"', "_", "running", "7")
free_prompts = st.text(max_size=60) | st.lists(st.sampled_from(words + marks), max_size=12).map(
    " ".join
)


@settings(max_examples=400, deadline=None)
@given(free_prompts.filter(lambda prompt: any(map(str.isalnum, prompt))))
def test_spans_of_any_prompt_lie_in_it_apart_and_begin_and_end_with_a_word(prompt):
    spans = extract_core(record_of(prompt))
    assert spans
    assert all(0 <= span.start < span.end <= len(prompt) for span in spans)
    assert all(a.end <= b.start for a, b in zip(spans, spans[1:], strict=False))
    for span in spans:
        assert prompt[span.start].isalnum() and prompt[span.end - 1].isalnum()
        outside = prompt[max(span.start - 1, 0) : span.start] + prompt[span.end : span.end + 1]
        assert not any(map(str.isalnum, outside))  # whole words
