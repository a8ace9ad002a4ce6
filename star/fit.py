"""Whether the text encoders see the prompts' core content, and the model has the blocks that are read: asked of all
prompts beforehand, of the tokenizers and a description alone."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from star.core import REPORTED, clause_records, core_tokens, nothing_seen
from star.errors import StarError
from star.params import AllocationParams, Params
from star.pipeline import open_tokenizers
from star.records import PromptRecord


def check_core(
    params: Params,
    folder: Path,
    allocation: AllocationParams,
    records: Sequence[PromptRecord],
    say: Callable[[str], None] = print,
) -> None:
    """Report what of the records' core content falls off, where maps are made of it; without a model.

    Args:
        folder: of the pipeline, from `star.pipeline.find_pipeline`.
        say: takes the lines of the report.

    Raises:
        StarError: blocks that the model does not have; prompts of which nothing is left.
    """
    if not allocation.uses_maps:
        return
    check_blocks(folder, allocation.blocks)
    pipe = open_tokenizers(folder, params.model)
    tokenizers = pipe.tokenizer, pipe.tokenizer_2, pipe.tokenizer_3
    lengths = pipe.tokenizer.model_max_length, params.model.t5_tokens
    weights = params.core.weights, allocation.encoders
    for line in unseen_core(records, tokenizers, lengths, *weights, allocation.clause_wise):
        say(f"warning: {line}")


def check_blocks(folder: Path, blocks: str | Sequence[int]) -> None:
    """Refuse blocks that the transformer's description does not have; one that does not count them is left alone.

    Args:
        folder: of the pipeline.
        blocks: ``"all"`` or block indices.

    Raises:
        StarError: names the first one.
    """
    count = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8")).get("num_layers")
    unknown = [block for block in blocks if isinstance(count, int) and block not in range(count)]
    if blocks != "all" and unknown:
        raise StarError(f"allocation.blocks: no block {unknown[0]}; the model has 0 to {count - 1}")


def unseen_core(
    records: Iterable[PromptRecord],
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    lengths: tuple[int, int],
    kind_weights: Mapping[str, float],
    encoder_weights: Mapping[str, float],
    clause_wise: bool,
) -> list[str]:
    """What the text encoders do not see of the prompts' core content: a line a prompt, the first `REPORTED` of them.

    Args:
        clause_wise: each clause must have a core token of its own; the other arguments are `core_token_weights`'.

    Raises:
        StarError: prompts (or clauses) of which nothing is left; names the first ones.
    """
    lines, lost = [], []
    for record in records:
        tokens = core_tokens(record, tokenizers, lengths, kind_weights, encoder_weights)
        names = zip(("clip", "t5"), ("CLIP", "T5"), lengths, strict=True)
        outside = [
            f"{', '.join(map(repr, words))} not among {length} {name} tokens"
            for key, name, length in names
            if (words := tokens.unseen.get(key))
        ]
        if outside:
            lines.append(f"{record.id}: core content that is not seen: {'; '.join(outside)}")
        for part in clause_records(record) if clause_wise else [record]:
            seen = core_tokens(part, tokenizers, lengths, kind_weights, encoder_weights) if clause_wise else tokens
            lost += [] if seen.weights.any() else [part]
    if lost:
        raise StarError(nothing_seen(lost, lengths, kind_weights))
    more = [f"and {len(lines) - REPORTED} prompts more"] if len(lines) > REPORTED else []
    return lines[:REPORTED] + more
