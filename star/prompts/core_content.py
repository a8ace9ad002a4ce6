"""Core content of a prompt (Method, D1): spans of characters with a kind."""

import re
from functools import cache

from star.prompts.carriers import carrier_of
from star.prompts.ocr import quoted_span
from star.prompts.phrases import content_words, subject_phrases, words
from star.prompts.records import CoreSpan, PromptRecord
from star.system.errors import StarError


def extract_core(record: PromptRecord) -> tuple[CoreSpan, ...]:
    """Core spans of a prompt: ordered, disjoint, at least one (Method, D1).

    GenEval's forms give object, count, color and relation exactly, with the clause they belong to;
    a prompt that departs from its metadata's form is read as a free one. A text prompt gives the
    inside of its first quotation and what carries it. A free prompt gives its subject noun phrases,
    or else every content word.

    Raises:
        StarError: an OCR prompt without a quoted span, or a prompt without any word.
    """
    prompt = record.prompt
    if record.task == "ocr" or "text" in record.metadata:
        return _writing_spans(record)
    if "include" in record.metadata:
        spans = _form_spans(prompt, record.metadata["include"])
        if spans:
            return spans
    if not words(prompt):
        raise StarError(f"prompt {record.id}: {prompt!r} has no word; remove it")
    subjects = tuple(CoreSpan(start, end, "subject") for start, end in subject_phrases(prompt))
    return subjects or tuple(
        CoreSpan(start, end, "content") for start, end in content_words(prompt)
    )


def _form_spans(prompt: str, include: list[dict]) -> tuple[CoreSpan, ...]:
    """The spans of the prompt that GenEval's grammar writes for these clauses; none if the prompt
    is another."""
    phrases = [(_phrase(clause), index) for index, clause in enumerate(include)]
    relation = include[-1].get("position", [""])[0]
    if (
        len(include) == 2 and relation
    ):  # the clause that is placed comes first, the one it is placed by second
        between, order = (rf"\s+(?P<relation>{_spaced(relation)})\s+", 1), phrases[::-1]
    else:
        between, order = (r"\s+and\s+", 0), phrases
    pieces = [(r"\s*an?\s+photo\s+of\s+", 0), order[0]]
    for phrase in order[1:]:
        pieces += [between, phrase]
    spans, position = [], 0
    for pattern, clause in [*pieces, (r"\.?\s*$", 0)]:
        match = _compiled(pattern).match(prompt, position)
        if match is None:
            return ()
        spans += [CoreSpan(*match.span(kind), kind, clause) for kind in match.groupdict()]
        position = match.end()
    return tuple(spans)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compiling would take most of the time of a large set, and a world has few different
    phrases."""
    return re.compile(pattern, re.IGNORECASE)


def _phrase(clause: dict) -> str:
    several = clause["count"] > 1
    count = r"(?P<count>\w+)" if several else "an?"
    color = rf"(?P<color>{_spaced(clause['color'])})\s+" if "color" in clause else ""
    ending = r"(?:e?s)?\b" if several else r"\b"
    return rf"{count}\s+{color}(?P<object>{_spaced(clause['class'])}{ending})"


def _spaced(phrase: str) -> str:
    return r"\s+".join(map(re.escape, phrase.split()))


def _writing_spans(record: PromptRecord) -> tuple[CoreSpan, ...]:
    quoted = quoted_span(record.prompt)
    if quoted is None:
        raise StarError(
            f'prompt {record.id}: no quoted span; write the word to be drawn as "WORD" in double quotes'
        )
    carrier = carrier_of(record.prompt, quoted)
    spans = [CoreSpan(*quoted, "text")] + ([CoreSpan(*carrier, "carrier")] if carrier else [])
    return tuple(sorted(spans, key=lambda span: span.start))
