"""Refuses, before a model is opened, what would fail later: folders, missing models, prompts that
are cut off."""

import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from star.config.params import AllocationParams, Params
from star.policy.loading import find_pipeline, open_tokenizers
from star.prompts.core_tokens import REPORTED, clause_records, find_core_tokens, nothing_seen
from star.prompts.records import PromptRecord
from star.rewards.factory import find_models
from star.system.errors import StarError


def check_folders(params: Params, work: Path, output: Path) -> None:
    """Refuse folders that cannot be written, in the order in which the stage would come to them.

    Raises:
        StarError: names the folder and what it is for.
    """
    if params.model.prompt_cache is not None:
        check_writable(Path(params.model.prompt_cache), "model.prompt_cache")
    check_writable(work, "the folder of states")
    check_writable(output, "the output folder")


def check_writable(folder: Path, name: str) -> None:
    """Refuse a folder in which nothing can be made, or that cannot be made itself; leaves nothing
    behind.

    Raises:
        StarError: begins with ``name``.
    """
    lineage = (folder.absolute(), *folder.absolute().parents)
    try:
        there = next(path for path in lineage if path.is_symlink() or path.exists())
        with tempfile.TemporaryDirectory(dir=there, prefix=".star-"):
            pass
    except OSError as error:
        raise StarError(
            f"{name} {folder}: cannot be written ({error.strerror}); give another folder"
        ) from error


def find_all_models(params: Params, tasks: Collection[str]) -> Path:
    """Have the base model and what judges the tasks on this machine, and return the directory of
    the former.

    Raises:
        StarError: what `star.policy.loading` and `star.rewards.factory` refuse.
    """
    folder = find_pipeline(params.model)
    find_models(tasks, params.rewards)
    return folder


def check_core(
    params: Params,
    folder: Path,
    allocation: AllocationParams,
    records: Sequence[PromptRecord],
    say: Callable[[str], None] = print,
) -> None:
    """Report what of the records' core content falls off, where maps are made of it; without a
    model.

    Args:
        folder: of the pipeline, from `star.policy.loading.find_pipeline`.
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
    """Refuse blocks that the transformer's description does not have; one that does not count them
    is left alone.

    Args:
        folder: of the pipeline.
        blocks: ``"all"`` or block indices.

    Raises:
        StarError: names the first one.
    """
    count = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8")).get(
        "num_layers"
    )
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
    """What the text encoders do not see of the prompts' core content: a line a prompt, the first
    `REPORTED` of them.

    Args:
        clause_wise: each clause must have a core token of its own; the other arguments are
            `find_core_tokens`'.

    Raises:
        StarError: prompts (or clauses) of which nothing is left; names the first ones.
    """
    lines, lost = [], []
    for record in records:
        tokens = find_core_tokens(record, tokenizers, lengths, kind_weights, encoder_weights)
        names = zip(("clip", "t5"), ("CLIP", "T5"), lengths, strict=True)
        outside = [
            f"{', '.join(map(repr, words))} not among {length} {name} tokens"
            for key, name, length in names
            if (words := tokens.unseen.get(key))
        ]
        if outside:
            lines.append(f"{record.id}: core content that is not seen: {'; '.join(outside)}")
        for part in clause_records(record) if clause_wise else [record]:
            seen = (
                find_core_tokens(part, tokenizers, lengths, kind_weights, encoder_weights)
                if clause_wise
                else tokens
            )
            lost += [] if seen.weights.any() else [part]
    if lost:
        raise StarError(nothing_seen(lost, lengths, kind_weights))
    more = [f"and {len(lines) - REPORTED} prompts more"] if len(lines) > REPORTED else []
    return lines[:REPORTED] + more
