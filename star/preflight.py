"""Refuses, before a model is opened, what would fail later: folders, missing models, prompts that
are cut off."""

import json
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from star.config.params import AllocationParams, CoreParams, ModelParams, RewardsParams
from star.policy.loading import find_pipeline, open_tokenizers
from star.prompts.core_tokens import REPORTED, clause_records, find_core_tokens, nothing_seen
from star.prompts.records import PromptRecord
from star.rewards.factory import find_models
from star.system.errors import StarError
from star.system.files import check_writable


def check_folders(model: ModelParams, work: Path, output: Path) -> None:
    """Refuse folders that cannot be written, in the order in which the stage would come to them.

    Raises:
        StarError: names the folder and what it is for.
    """
    if model.prompt_cache is not None:
        check_writable(Path(model.prompt_cache), "model.prompt_cache")
    check_writable(work, "the folder of states")
    check_writable(output, "the output folder")


def find_all_models(model: ModelParams, rewards: RewardsParams, tasks: Collection[str]) -> Path:
    """Have the base model and what judges the tasks on this machine.

    Returns:
        the directory of the base model.

    Raises:
        StarError: what `star.policy.loading` and `star.rewards.factory` refuse.
    """
    folder = find_pipeline(model)
    find_models(tasks, rewards)
    return folder


def check_core(
    folder: Path,
    model: ModelParams,
    core: CoreParams,
    allocation: AllocationParams,
    records: Sequence[PromptRecord],
    say: Callable[[str], None] = print,
) -> None:
    """Report core content that the text encoders do not see, where maps are made of it.

    Opens tokenizers and no model; says a line for each of the first `REPORTED` prompts.

    Args:
        folder: of the pipeline, from `find_all_models`.
        say: takes the lines of the report.

    Raises:
        StarError: blocks that the model does not have; prompts of which nothing is left, or clauses
            where each has a map of its own.
    """
    if not allocation.uses_maps:
        return
    check_blocks(folder, allocation.blocks)
    pipe = open_tokenizers(folder, model)
    tokenizers = pipe.tokenizer, pipe.tokenizer_2, pipe.tokenizer_3
    lengths = pipe.tokenizer.model_max_length, model.t5_tokens
    seen = partial(
        find_core_tokens,
        tokenizers=tokenizers,
        lengths=lengths,
        kind_weights=core.weights,
        encoder_weights=allocation.encoders,
    )
    cut, lost = [], []
    for record in records:
        tokens = seen(record)
        outside = [
            f"{', '.join(map(repr, words))} not among {length} {name} tokens"
            for part, name, length in zip(("clip", "t5"), ("CLIP", "T5"), lengths, strict=True)
            if (words := tokens.unseen.get(part))
        ]
        if outside:
            cut.append(f"{record.id}: core content that is not seen: {'; '.join(outside)}")
        if allocation.clause_wise:
            lost += [part for part in clause_records(record) if not seen(part).weights.any()]
        elif not tokens.weights.any():
            lost.append(record)
    if lost:
        raise StarError(nothing_seen(lost, lengths, core.weights))
    for line in cut[:REPORTED]:
        say(f"warning: {line}")
    if len(cut) > REPORTED:
        say(f"warning: and {len(cut) - REPORTED} prompts more")


def check_blocks(folder: Path, blocks: str | Sequence[int]) -> None:
    """Refuse blocks that the transformer of a pipeline does not have, if its description counts
    them.

    Args:
        folder: of the pipeline.
        blocks: ``"all"`` or block indices.

    Raises:
        StarError: names the first one.
    """
    description = (folder / "transformer" / "config.json").read_text(encoding="utf-8")
    count = json.loads(description).get("num_layers")
    if blocks == "all" or not isinstance(count, int):
        return
    for block in blocks:
        if block not in range(count):
            raise StarError(f"allocation.blocks: no block {block}; the model has 0 to {count - 1}")
