"""Token positions of a prompt's core content (Method, D1).

A span is a range of characters, because each text encoder cuts the prompt in its own way. The text
keys of SD3's joint attention are the positions of the two CLIP encoders, joined feature by feature,
and after them those of T5."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from star.prompts.records import CoreSpan, PromptRecord
from star.system.errors import StarError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


REPORTED = 10  # prompts named in a report
EVERY_ENCODER: Mapping[str, float] = {"clip": 1.0, "t5": 1.0}


@dataclass(frozen=True)
class CoreTokens:
    """Weights of the text sequence's positions, and the spans that they do not cover in full.

    ``weights`` is float32 (clip_length + t5_length,), zero for what is no core token; ``dropped``
    holds each weighted span of which some character has no token in a part that counts: cut by its
    length, or unknown to it. ``unseen`` has these characters, word by word, for each part
    (``clip``, ``t5``) that counts. ``others``, bool like ``weights``: the positions of all other
    words in these parts."""

    weights: np.ndarray
    others: np.ndarray
    dropped: tuple[CoreSpan, ...]
    unseen: Mapping[str, tuple[str, ...]]


def core_token_weights(
    record: PromptRecord,
    tokenizers: "tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase, PreTrainedTokenizerBase]",
    lengths: tuple[int, int],
    kind_weights: Mapping[str, float],
    encoder_weights: Mapping[str, float] = EVERY_ENCODER,
) -> CoreTokens:
    """Weight of every position of SD3's text sequence as a key of the joint attention.

    A position has the largest weight of the spans that its token overlaps, in either tokenizer for
    a CLIP position. Start, end, padding and other special tokens never count.

    Args:
        record: with ``core`` filled.
        tokenizers: CLIP, second CLIP and T5 tokenizer, all with offsets (fast).
        lengths: positions of the CLIP and of the T5 part.
        kind_weights: weight of each span kind; zero or absent leaves the kind out.
        encoder_weights: factors of the ``clip`` and the ``t5`` part; zero leaves the part out.

    Raises:
        StarError: no core yet, or no position with a weight above zero.
    """
    tokens = core_tokens(record, tokenizers, lengths, kind_weights, encoder_weights)
    if not tokens.weights.any():
        raise StarError(nothing_seen([record], lengths, kind_weights))
    return tokens


def core_tokens(
    record: PromptRecord,
    tokenizers: "tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase, PreTrainedTokenizerBase]",
    lengths: tuple[int, int],
    kind_weights: Mapping[str, float],
    encoder_weights: Mapping[str, float] = EVERY_ENCODER,
) -> CoreTokens:
    """As `core_token_weights`, which explains the arguments, for prompts that may have no position
    left.

    Raises:
        StarError: no core yet, or none that counts.
    """
    if record.core is None:
        raise StarError(f"prompt {record.id}: no core spans; run `star core` on its file first")
    spans = [span for span in record.core if kind_weights.get(span.kind, 0.0) > 0]
    if not spans:
        kinds = ", ".join(sorted({span.kind for span in record.core}))
        raise StarError(
            f"prompt {record.id}: core.weights leaves out all it has ({kinds}); give one a weight above 0"
        )
    clip_length, t5_length = lengths
    clip, clip2, t5 = (
        _token_ranges(tokenizer, record.prompt, length)
        for tokenizer, length in zip(tokenizers, (clip_length, clip_length, t5_length), strict=True)
    )
    clip_weights = np.maximum(_weigh(clip, spans, kind_weights), _weigh(clip2, spans, kind_weights))
    t5_weights = _weigh(t5, spans, kind_weights)
    weights = np.concatenate(
        [encoder_weights["clip"] * clip_weights, encoder_weights["t5"] * t5_weights]
    )
    words = np.concatenate(
        [
            encoder_weights["clip"] * (_worded(clip) | _worded(clip2)) * (clip_weights == 0),
            encoder_weights["t5"] * _worded(t5) * (t5_weights == 0),
        ]
    )
    parts = {
        name: _covered(ranges)
        for name, ranges in (("clip", clip + clip2), ("t5", t5))
        if encoder_weights[name] > 0
    }
    dropped = (
        span
        for span in spans
        if not all(_inked(record.prompt, span) <= part for part in parts.values())
    )
    unseen = {
        name: tuple(_unseen_words(record.prompt, spans, part)) for name, part in parts.items()
    }
    return CoreTokens(weights, words > 0, tuple(dropped), unseen)


def nothing_seen(
    records: Sequence[PromptRecord], lengths: tuple[int, int], kind_weights: Mapping[str, float]
) -> str:
    """The error for prompts without a core token: their ids and what was to be found."""
    first = records[0]
    counting = [span for span in first.core or () if kind_weights.get(span.kind, 0.0) > 0]
    content = ", ".join(repr(first.prompt[span.start : span.end]) for span in counting)
    others = list(dict.fromkeys(record.id for record in records[1:] if record.id != first.id))
    also = (
        f" (so do {', '.join(others[:REPORTED])}{' and more' if len(others) > REPORTED else ''})"
        if others
        else ""
    )
    return (
        f"prompt {first.id}: no core content ({content}) within {lengths[0]} CLIP and {lengths[1]} T5 tokens{also}; "
        "shorten or remove the prompt, or raise model.t5_tokens"
    )


def clause_records(record: PromptRecord) -> list[PromptRecord]:
    """The record once for each clause that its reward tells apart, each with the core spans of that
    clause alone.

    A clause of GenEval's ``include``; a letter (any character but blanks) of a text to be drawn,
    with what carries the text; for other tasks, and for a prompt whose core does not tell the
    clauses apart, the core is the whole one. In the order of
    `star.rewards.base.RewardResult.shares`."""
    core = record.core or ()
    if record.task == "geneval":
        parts = [
            tuple(span for span in core if span.clause in (None, index))
            for index, _ in enumerate(record.metadata["include"])
        ]
    elif record.task == "ocr":
        letters = [
            CoreSpan(index, index + 1, "text")
            for span in core
            if span.kind == "text"
            for index in range(span.start, span.end)
            if not record.prompt[index].isspace()
        ]
        carriers = tuple(span for span in core if span.kind != "text")
        parts = [(letter, *carriers) for letter in letters]
    else:
        parts = [core]
    return [dataclasses.replace(record, core=part or core) for part in parts]


def scattered(weights: np.ndarray, words: np.ndarray, seed: int) -> np.ndarray:
    """Weights moved from the core tokens to other words of the prompt, drawn at random: a control
    without content.

    As many as there are core tokens; where the prompt has fewer, each gets the weights of several.

    Args:
        weights: float32 (K, text tokens).
        words: bool (text tokens), positions that may be drawn: `CoreTokens.others`.
    """
    core, rest = np.flatnonzero(weights.sum(0)), np.flatnonzero(words)
    moved = np.zeros_like(weights)
    if not len(rest):
        return moved  # of a prompt that is nothing but core, whose map is flat then
    order = np.random.default_rng(seed).permutation(rest)
    np.add.at(moved.T, np.resize(order, len(core)), weights[:, core].T)
    return moved


def _token_ranges(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, length: int
) -> list[tuple[int, int]]:
    """Characters of each of ``length`` tokens as the pipeline encodes the prompt; an empty range
    for special tokens.

    Some versions count the blank before a word to its token, some do not; no span begins or ends
    there, so both do."""
    encoding = tokenizer(
        prompt,
        padding="max_length",
        max_length=length,
        truncation=True,
        return_offsets_mapping=True,
    )
    special = set(tokenizer.all_special_ids)
    return [
        (0, 0) if token in special or not prompt[start:end].strip() else (start, end)
        for token, (start, end) in zip(
            encoding["input_ids"], encoding["offset_mapping"], strict=True
        )
    ]


def _weigh(
    ranges: Sequence[tuple[int, int]], spans: Sequence[CoreSpan], kind_weights: Mapping[str, float]
) -> np.ndarray:
    """The largest weight of the spans that each token overlaps: float32 (tokens,)."""
    return np.array(
        [
            max(
                (
                    kind_weights[span.kind]
                    for span in spans
                    if start < span.end and span.start < end
                ),
                default=0.0,
            )
            for start, end in ranges
        ],
        np.float32,
    )


def _worded(ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which tokens are of a word: bool (tokens,); not the beginning, end and padding, which draw
    attention anyway."""
    return np.array([end > start for start, end in ranges])


def _covered(ranges: Iterable[tuple[int, int]]) -> set[int]:
    return {index for start, end in ranges for index in range(start, end)}


def _unseen_words(prompt: str, spans: Iterable[CoreSpan], covered: set[int]) -> Iterator[str]:
    """The characters of the spans that no token covers, those of a word together."""
    for span in spans:
        for word in re.finditer(r"\S+", prompt[span.start : span.end]):
            places = range(span.start + word.start(), span.start + word.end())
            if unseen := "".join(prompt[place] for place in places if place not in covered):
                yield unseen


def _inked(prompt: str, span: CoreSpan) -> set[int]:
    return {index for index in range(span.start, span.end) if not prompt[index].isspace()}
