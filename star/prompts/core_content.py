"""Core content of a prompt (Method, D1): spans of characters with a kind."""

import dataclasses
import re
from collections.abc import Iterable
from functools import cache

from star.prompts.carriers import carrier_of
from star.prompts.flags import without_flags
from star.prompts.ocr import QUOTE_IT, quoted_spans
from star.prompts.phrases import content_words, subject_phrases, words
from star.prompts.records import CoreSpan, PromptRecord, texts_of
from star.system.errors import StarError

_compiled = cache(re.compile)  # a world has few different phrases, a set many prompts


def extract_core(record: PromptRecord) -> tuple[CoreSpan, ...]:
    """Return the core spans of a prompt: ordered, disjoint, at least one (Method, D1).

    GenEval's forms give object, count, color and relation exactly, with the clause they belong to;
    a prompt that departs from its metadata's form is read as a free one. A text prompt gives the
    inside of its quotations and what carries each. A free prompt gives its subject noun phrases,
    or else every content word.

    Raises:
        StarError: an OCR prompt without a quoted span, or a prompt without any word.
    """
    prompt = without_flags(record.prompt)
    if record.task == "ocr" or "text" in record.metadata:
        return _writing_spans(record)
    if spans := _form_spans(prompt, record.metadata.get("include", [])):
        return spans
    if not words(prompt):
        raise StarError(f"prompt {record.id}: {record.prompt!r} has no word; remove it")
    subjects = subject_phrases(prompt)
    kind, found = ("subject", subjects) if subjects else ("content", content_words(prompt))
    return tuple(CoreSpan(start, end, kind) for start, end in found)


def with_core(records: Iterable[PromptRecord]) -> list[PromptRecord]:
    """Return the records with their core spans (`extract_core`)."""
    return [dataclasses.replace(record, core=extract_core(record)) for record in records]


def _form_spans(prompt: str, include: list[dict]) -> tuple[CoreSpan, ...]:
    """Return the spans of the prompt that GenEval's grammar writes for these clauses.

    None is there if the prompt is another. A clause that is placed comes before the one that it is
    placed by."""
    phrases = [(_phrase(clause), index) for index, clause in enumerate(include)]
    joint = (r"\s+and\s+", 0)
    relation = include[-1].get("position", [""])[0] if len(include) == 2 else ""
    if relation:
        joint = (rf"\s+(?P<relation>{_spaced(relation)})\s+", 1)
        phrases.reverse()
    joined = [piece for phrase in phrases for piece in (joint, phrase)][1:]
    spans, position = [], 0
    for pattern, clause in [(r"\s*an?\s+photo\s+of\s+", 0), *joined, (r"\.?\s*$", 0)]:
        match = _compiled(pattern, re.IGNORECASE).match(prompt, position)
        if match is None:
            return ()
        spans += [CoreSpan(*match.span(kind), kind, clause) for kind in match.groupdict()]
        position = match.end()
    return tuple(spans)


def _phrase(clause: dict) -> str:
    several = clause["count"] > 1
    count = r"(?P<count>\w+)" if several else "an?"
    color = rf"(?P<color>{_spaced(clause['color'])})\s+" if "color" in clause else ""
    ending = r"(?:e?s)?\b" if several else r"\b"
    return rf"{count}\s+{color}(?P<object>{_spaced(clause['class'])}{ending})"


def _spaced(phrase: str) -> str:
    return r"\s+".join(map(re.escape, phrase.split()))


def _writing_spans(record: PromptRecord) -> tuple[CoreSpan, ...]:
    """Return the texts to be drawn, those of the metadata if they are quoted, and their carriers.

    Where there are several, a text is the clause of its index."""
    prompt, wanted = record.prompt, texts_of(record.metadata)
    quoted = quoted_spans(prompt)
    if not quoted:
        raise StarError(f"prompt {record.id}: {QUOTE_IT}")
    quoted = [span for span in quoted if prompt[slice(*span)] in wanted] or quoted
    spans: dict[tuple[int, int], CoreSpan] = {}
    for index, text in enumerate(quoted):
        clause = index if len(quoted) > 1 else None
        spans[text] = CoreSpan(*text, "text", clause)
        alone = without_flags(prompt)
        for start, end in quoted:
            if (start, end) != text:
                alone = alone[:start] + " " * (end - start) + alone[end:]
        if carrier := carrier_of(alone, text):
            shared = carrier in spans
            spans[carrier] = CoreSpan(*carrier, "carrier", None if shared else clause)
    return tuple(sorted(spans.values(), key=lambda span: span.start))
