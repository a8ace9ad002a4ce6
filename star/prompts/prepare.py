"""The prompt stage: train and test sets of a task from the built-in grammars or from files, local
or fetched."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from star.config.params import TASKS, Params, PromptSetParams, PromptSource
from star.prompts.geneval import (
    COCO_CLASSES,
    MINIATURE_CLASSES,
    TAGS,
    TRAIN_TAG_WEIGHTS,
    check_metadata,
)
from star.prompts.grammar import Form, Prompt, draw_test, draw_train, identities, identity
from star.prompts.ocr import MINIATURE_TEMPLATES, TEMPLATES, draw_signs, read_ocr_file
from star.prompts.preference import caption_form, caption_forms, read_preference_file
from star.prompts.published import fetched_file
from star.prompts.records import PromptRecord, parse_object, read_lines
from star.system.errors import StarError

# World -> object classes and sign sentences.
WORLDS = {"miniature": (MINIATURE_CLASSES, MINIATURE_TEMPLATES), "coco": (COCO_CLASSES, TEMPLATES)}


def prepare(task: str, params: Params) -> tuple[list[PromptRecord], list[PromptRecord]]:
    """Train and test prompts of a task, determined by ``params.seed`` and ``params.prompts`` alone.

    The test set is drawn first. No training prompt equals a test prompt, taken from the test file
    or left there (`star.prompts.grammar.identity`).

    Args:
        task: one of `star.config.params.TASKS`.
        params: all parameters.

    Returns:
        Training records, test records.

    Raises:
        StarError: a malformed file (file and line), one that cannot be fetched (see
            `star.prompts.published`), or more prompts asked for than there are (key and maximum).
    """
    sets: PromptSetParams = getattr(params.prompts, task)
    classes, templates = WORLDS[params.prompts.world]
    seeds = np.random.SeedSequence([params.seed, TASKS.index(task)]).spawn(2)
    test_rng, train_rng = map(np.random.default_rng, seeds)
    read = _reader(task, classes)
    held_out = read(_path(sets.test_file, f"prompts.{task}.test_file")) if sets.test_file else []
    test = (
        _take(held_out, _distinct_first(held_out, test_rng), sets.test, f"prompts.{task}.test")
        if held_out
        else []
    )
    if task == "ocr":
        train, drawn = _draw_ocr(sets, templates, held_out, test_rng)
        test = test or drawn
    else:
        forms = _geneval_forms(classes) if task == "geneval" else caption_forms(classes, templates)
        test = test or draw_test(forms, sets.test, test_rng)
        excluded = identities(held_out or test)
        train = [] if sets.train_file else draw_train(forms, sets.train, excluded, train_rng, task)
    if sets.train_file:
        excluded = identities(held_out or test)
        given = read(_path(sets.train_file, f"prompts.{task}.train_file"))
        kept = [prompt for prompt in given if identity(prompt).isdisjoint(excluded)]
        train = _take(kept, train_rng.permutation(len(kept)), sets.train, f"prompts.{task}.train")
    return _records(task, "train", train), _records(task, "test", test)


def _path(file: str | PromptSource, key: str) -> str:
    return file if isinstance(file, str) else str(fetched_file(file, key))


def _draw_ocr(
    sets: PromptSetParams,
    templates: tuple[str, ...],
    held_out: list[Prompt],
    rng: np.random.Generator,
) -> tuple[list[Prompt], list[Prompt]]:
    """Training and test signs for whatever does not come from a file."""
    taken = frozenset(prompt.metadata["text"].upper() for prompt in held_out)
    train_count = 0 if sets.train_file else sets.train
    test, train = draw_signs(0 if held_out else sets.test, train_count, templates, taken, rng)
    return train, test


def _geneval_forms(classes: tuple[str, ...]) -> tuple[Form, ...]:
    return tuple(caption_form(tag, classes, TRAIN_TAG_WEIGHTS.get(tag, 0.0)) for tag in TAGS)


def _reader(task: str, classes: tuple[str, ...]) -> Callable[[str], list[Prompt]]:
    def read_geneval_file(path: str) -> list[Prompt]:
        prompts = []
        for number, text in read_lines(path):
            line = parse_object(text, f"{path}:{number}")
            check_metadata(line, classes, f"{path}:{number}")
            prompts.append(Prompt(line["prompt"], line))
        return prompts

    return {"geneval": read_geneval_file, "ocr": read_ocr_file, "preference": read_preference_file}[
        task
    ]


def _take(prompts: Sequence[Prompt], order: Iterable[int], count: int, key: str) -> list[Prompt]:
    """The first ``count`` prompts of a file by ``order``, in the file's own order."""
    if count > len(prompts):
        left = " that are not in the test set" if key.endswith("train") else ""
        raise StarError(
            f"{key}: {count} prompts asked for, the file gives at most {len(prompts)}{left}; lower {key}"
        )
    return [prompts[index] for index in sorted(list(order)[:count])]


def _distinct_first(prompts: Sequence[Prompt], rng: np.random.Generator) -> list[int]:
    """A random order of a file in which no prompt comes again before all have come (some test sets
    repeat theirs)."""
    seen: Counter[str] = Counter()
    turns = []
    for prompt in prompts:
        turns.append(seen[prompt.text])
        seen[prompt.text] += 1
    return sorted(rng.permutation(len(prompts)), key=turns.__getitem__)


def _records(task: str, split: str, prompts: Sequence[Prompt]) -> list[PromptRecord]:
    return [
        PromptRecord(f"{task}-{split}-{index:05d}", task, prompt.text, prompt.metadata)
        for index, prompt in enumerate(prompts)
    ]
