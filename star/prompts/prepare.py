"""The prompt stage: train and test sets of a task from the built-in grammars or from files, local
or fetched."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from star.config.params import TASKS, PromptSetParams, PromptSource, PromptsParams
from star.prompts.geneval import (
    COCO_CLASSES,
    MINIATURE_CLASSES,
    TAGS,
    TRAIN_TAG_WEIGHTS,
    check_metadata,
    grammar_size,
    sample_metadata,
)
from star.prompts.grammar import Form, Prompt, draw_test, draw_train, identities, identity
from star.prompts.ocr import MINIATURE_TEMPLATES, TEMPLATES, draw_signs, read_ocr_file
from star.prompts.published import fetched_file
from star.prompts.records import PromptRecord, parse_object, read_lines
from star.prompts.words import WORDS
from star.system.errors import StarError

# World -> object classes and sign sentences.
WORLDS = {"miniature": (MINIATURE_CLASSES, MINIATURE_TEMPLATES), "coco": (COCO_CLASSES, TEMPLATES)}


def prepare(
    task: str, prompts: PromptsParams, seed: int
) -> tuple[list[PromptRecord], list[PromptRecord]]:
    """Return the training and the test prompts of a task.

    The test set is drawn first. No training prompt equals a test prompt, taken from the test file
    or left there (`star.prompts.grammar.identity`).

    Args:
        task: one of `star.config.params.TASKS`.
        prompts, seed: the two sections of the parameters that decide it.

    Raises:
        StarError: a malformed file (file and line), one that cannot be fetched (see
            `star.prompts.published`), or more prompts asked for than there are (key and maximum).
    """
    sets: PromptSetParams = getattr(prompts, task)
    classes, templates = WORLDS[prompts.world]
    seeds = np.random.SeedSequence([seed, TASKS.index(task)]).spawn(2)
    test_rng, train_rng = map(np.random.default_rng, seeds)

    def read(key: str) -> list[Prompt]:
        file: str | PromptSource = getattr(sets, key)
        name = f"prompts.{task}.{key}"
        path = file if isinstance(file, str) else str(fetched_file(file, name))
        if not Path(path).is_file():
            raise StarError(
                f"{name}: {path!r}: no file at {Path(path).absolute()}; give its path from the "
                f"folder where star starts, as data/prompts/{Path(path).name}"
            )
        return _read_file(task, path, classes)

    held_out = read("test_file") if sets.test_file else []
    test = _take_distinct(held_out, test_rng, sets.test, task) if held_out else []
    train_count = 0 if sets.train_file else sets.train
    if task == "ocr":
        taken = frozenset(prompt.metadata["text"].upper() for prompt in held_out)
        test_count = 0 if held_out else sets.test
        drawn, train = draw_signs(test_count, train_count, templates, taken, test_rng)
        test = test or drawn
    else:
        forms = _forms(task, classes, templates)
        test = test or draw_test(forms, sets.test, test_rng)
        train = draw_train(forms, train_count, identities(held_out or test), train_rng, task)
    if sets.train_file:
        excluded = identities(held_out or test)
        given = [prompt for prompt in read("train_file") if identity(prompt).isdisjoint(excluded)]
        train = _take(given, train_rng.permutation(len(given)), sets.train, task, "train")
    return _records(task, "train", train), _records(task, "test", test)


def _forms(task: str, classes: tuple[str, ...], templates: tuple[str, ...]) -> tuple[Form, ...]:
    """Return GenEval's forms as published; for preference all with equal weight, and signs."""

    def caption_form(tag: str, train_weight: float) -> Form:
        def draw(rng: np.random.Generator) -> Prompt:
            metadata = sample_metadata(tag, classes, rng)
            return Prompt(metadata["prompt"], metadata)

        return Form(tag, grammar_size(tag, len(classes)), draw, train_weight)

    def draw_sign(rng: np.random.Generator) -> Prompt:
        word = WORDS[rng.integers(len(WORDS))]
        return Prompt(templates[rng.integers(len(templates))].format(word), {"text": word})

    if task == "geneval":
        return tuple(caption_form(tag, TRAIN_TAG_WEIGHTS.get(tag, 0.0)) for tag in TAGS)
    signs = Form("sign", len(WORDS) * len(templates), draw_sign, 1.0)
    return (*(caption_form(tag, 1.0) for tag in TAGS), signs)


def _read_file(task: str, path: str, classes: tuple[str, ...]) -> list[Prompt]:
    if task == "geneval":
        prompts = []
        for number, text in read_lines(path):
            line = parse_object(text, f"{path}:{number}")
            check_metadata(line, classes, f"{path}:{number}")
            prompts.append(Prompt(line["prompt"], line))
        return prompts
    return read_ocr_file(path) if task == "ocr" else _read_preference_file(path)


def _read_preference_file(path: str) -> list[Prompt]:
    """Read one prompt per line; lines without any word, which some captions are, are left out."""
    lines = [line for _, line in read_lines(path)]
    prompts = [Prompt(line, {}) for line in lines if any(map(str.isalnum, line))]
    if not prompts:
        raise StarError(f"{path}: no line has a word; it needs one prompt per line")
    if len(prompts) < len(lines):
        print(f"{path}: {len(lines) - len(prompts)} lines without a word left out")
    return prompts


def _take(
    prompts: Sequence[Prompt], order: Iterable[int], count: int, task: str, split: str
) -> list[Prompt]:
    """Return the first ``count`` prompts of a file by ``order``, in the file's own order."""
    if count > len(prompts):
        key, left = f"prompts.{task}.{split}", " outside the test set" if split == "train" else ""
        most = f"the file gives at most {len(prompts)}{left}"
        raise StarError(f"{key}: {count} prompts asked for, {most}; lower {key}")
    return [prompts[index] for index in sorted(list(order)[:count])]


def _take_distinct(
    prompts: Sequence[Prompt], rng: np.random.Generator, count: int, task: str
) -> list[Prompt]:
    """Return test prompts of a file, none again before all have come: some sets repeat theirs."""
    seen: Counter[str] = Counter()
    turns = []
    for prompt in prompts:
        turns.append(seen[prompt.text])
        seen[prompt.text] += 1
    order = sorted(rng.permutation(len(prompts)), key=turns.__getitem__)
    return _take(prompts, order, count, task, "test")


def _records(task: str, split: str, prompts: Sequence[Prompt]) -> list[PromptRecord]:
    return [
        PromptRecord(f"{task}-{split}-{index:05d}", task, prompt.text, prompt.metadata)
        for index, prompt in enumerate(prompts)
    ]
