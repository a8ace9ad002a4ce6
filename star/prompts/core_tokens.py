"""Token positions of a prompt's core content (Method, D1).

A span is a range of characters, because each text encoder cuts the prompt in its own way. The text
keys of SD3's joint attention are the positions of the two CLIP encoders, joined feature by feature,
and after them those of T5."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from star.prompts.records import CoreSpan, PromptRecord
from star.system.errors import StarError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Tokenizers = tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase, PreTrainedTokenizerBase]

REPORTED = 10  # prompts named in a report
EVERY_ENCODER: Mapping[str, float] = {"clip": 1.0, "t5": 1.0}

_Ranges = list[tuple[int, int]]  # characters of each token, start and end


@dataclass(frozen=True)
class CoreTokens:
    """What the text encoders see of a prompt's core content.

    Attributes:
        weights: float32 (clip_length + t5_length,), zero for what is no core token.
        others: bool, same shape; positions of all other words in the counted parts.
        unseen: for each counted part (``clip``, ``t5``), the core characters that no token covers,
            word by word. They are cut off, or unknown to the tokenizer.
    """

    weights: np.ndarray
    others: np.ndarray
    unseen: Mapping[str, tuple[str, ...]]


def require_core_tokens(
    record: PromptRecord,
    tokenizers: "Tokenizers",
    lengths: tuple[int, int],
    kind_weights: Mapping[str, float],
    encoder_weights: Mapping[str, float] = EVERY_ENCODER,
) -> CoreTokens:
    """Return what `find_core_tokens` does, and refuse a prompt without any core token.

    Raises:
        StarError: as `find_core_tokens`; or no position has a weight above zero.
    """
    tokens = find_core_tokens(record, tokenizers, lengths, kind_weights, encoder_weights)
    if not tokens.weights.any():
        raise StarError(nothing_seen([record], lengths, kind_weights))
    return tokens


def find_core_tokens(
    record: PromptRecord,
    tokenizers: "Tokenizers",
    lengths: tuple[int, int],
    kind_weights: Mapping[str, float],
    encoder_weights: Mapping[str, float] = EVERY_ENCODER,
) -> CoreTokens:
    """Weigh every position of SD3's text sequence as a key of the joint attention.

    A position has the largest weight of the spans that its token overlaps, in either tokenizer for
    a CLIP position. Start, end, padding and other special tokens never count.

    Args:
        record: with ``core`` filled.
        tokenizers: CLIP, second CLIP and T5 tokenizer, all with offsets (fast).
        lengths: positions of the CLIP and of the T5 part.
        kind_weights: weight of each span kind; zero or absent leaves the kind out.
        encoder_weights: factors of the ``clip`` and the ``t5`` part; zero leaves the part out.

    Raises:
        StarError: no core yet, or none of a kind that counts.
    """
    if record.core is None:
        raise StarError(f"prompt {record.id}: no core spans; run `star core` on its file first")
    spans = _counting(record, kind_weights)
    if not spans:
        kinds = ", ".join(sorted({span.kind for span in record.core}))
        left_out = f"core.weights leaves out all it has ({kinds})"
        raise StarError(f"prompt {record.id}: {left_out}; give one a weight above 0")
    clip, clip2, t5 = (
        _token_ranges(tokenizer, record.prompt, length)
        for tokenizer, length in zip(tokenizers, (lengths[0], *lengths), strict=True)
    )
    weights, others, unseen = [], [], {}
    for name, parts in (("clip", (clip, clip2)), ("t5", (t5,))):
        found = np.maximum.reduce([_weigh(ranges, spans, kind_weights) for ranges in parts])
        worded = np.logical_or.reduce([[end > start for start, end in each] for each in parts])
        weights.append(encoder_weights[name] * found)
        others.append((encoder_weights[name] > 0) & worded & (found == 0))
        if encoder_weights[name] > 0:
            unseen[name] = tuple(_unseen_words(record.prompt, spans, parts))
    return CoreTokens(np.concatenate(weights), np.concatenate(others), unseen)


def nothing_seen(
    records: Sequence[PromptRecord], lengths: tuple[int, int], kind_weights: Mapping[str, float]
) -> str:
    """Return the error for prompts without a core token: their ids and what was to be found."""
    first = records[0]
    spans = _counting(first, kind_weights)
    content = ", ".join(repr(first.prompt[span.start : span.end]) for span in spans)
    others = list(dict.fromkeys(record.id for record in records[1:] if record.id != first.id))
    more = " and more" if len(others) > REPORTED else ""
    also = f" (the same holds for {', '.join(others[:REPORTED])}{more})" if others else ""
    return (
        f"prompt {first.id}: no core content ({content}) within {lengths[0]} CLIP and "
        f"{lengths[1]} T5 tokens{also}; shorten or remove the prompt, or raise model.t5_tokens"
    )


def clause_records(record: PromptRecord) -> list[PromptRecord]:
    """Return the record once for each clause that its reward scores, with that clause's core.

    A clause is an entry of GenEval's ``include``, or a letter (any character except spaces) of the
    texts to be drawn, with what carries its text. For other tasks, and where the core does not
    distinguish the clauses, the core is the whole one. The order is that of
    `star.rewards.base.RewardResult.shares`."""
    core = record.core or ()
    parts = [core]
    if record.task == "geneval":
        parts = [
            tuple(span for span in core if span.clause in (None, index))
            for index, _ in enumerate(record.metadata["include"])
        ]
    elif record.task == "ocr":
        carriers = [span for span in core if span.kind != "text"]
        parts = [
            (
                CoreSpan(place, place + 1, "text"),
                *(carrier for carrier in carriers if carrier.clause in (None, text.clause)),
            )
            for text in core
            if text.kind == "text"
            for place in range(text.start, text.end)
            if not record.prompt[place].isspace()
        ]
    return [dataclasses.replace(record, core=part or core) for part in parts]


def scattered(weights: np.ndarray, words: np.ndarray, seed: int) -> np.ndarray:
    """Move weights from the core tokens to other words, drawn at random: a control without content.

    It draws as many other words as there are core tokens. With too few, one word takes several
    weights. With none, all weights are 0 and the map is flat.

    Args:
        weights: float32 (K, text tokens).
        words: bool (text tokens,), positions that may be drawn: `CoreTokens.others`.
    """
    core, rest = np.flatnonzero(weights.sum(0)), np.flatnonzero(words)
    moved = np.zeros_like(weights)
    if len(rest):
        order = np.random.default_rng(seed).permutation(rest)
        np.add.at(moved.T, np.resize(order, len(core)), weights[:, core].T)
    return moved


def _counting(record: PromptRecord, kind_weights: Mapping[str, float]) -> list[CoreSpan]:
    return [span for span in record.core or () if kind_weights.get(span.kind, 0.0) > 0]


def _token_ranges(tokenizer: "PreTrainedTokenizerBase", prompt: str, length: int) -> _Ranges:
    """Return the characters of each of ``length`` tokens as the pipeline encodes the prompt.

    The range of a special token is empty. Some versions include the space before a word in its
    token. No span starts or ends there, so it does not matter."""
    encoding = tokenizer(
        prompt,
        padding="max_length",
        max_length=length,
        truncation=True,
        return_offsets_mapping=True,
    )
    special = set(tokenizer.all_special_ids)
    pairs = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    return [
        (0, 0) if token in special or not prompt[start:end].strip() else (start, end)
        for token, (start, end) in pairs
    ]


def _weigh(
    ranges: _Ranges, spans: Sequence[CoreSpan], kind_weights: Mapping[str, float]
) -> np.ndarray:
    """Return the largest weight of the spans that each token overlaps: float32 (tokens,)."""
    weights = np.zeros(len(ranges), np.float32)
    for index, (start, end) in enumerate(ranges):
        overlapped = (span for span in spans if start < span.end and span.start < end)
        weights[index] = max((kind_weights[span.kind] for span in overlapped), default=0.0)
    return weights


def _unseen_words(
    prompt: str, spans: Sequence[CoreSpan], parts: Sequence[_Ranges]
) -> Iterator[str]:
    """Yield, word by word, the characters of the spans that no token covers."""
    seen = {place for ranges in parts for start, end in ranges for place in range(start, end)}
    for span in spans:
        for word in re.finditer(r"\S+", prompt[span.start : span.end]):
            places = range(span.start + word.start(), span.start + word.end())
            if unseen := "".join(prompt[place] for place in places if place not in seen):
                yield unseen
