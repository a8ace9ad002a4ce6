"""The prompt stage: train and test sets of a task from the built-in grammars or from files, local
or fetched."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from star.config.params import TASKS, PromptSetParams, PromptSource, PromptsParams
from star.prompts.flags import without_flags
from star.prompts.geneval import (
    COCO_CLASSES,
    MINIATURE_CLASSES,
    TAGS,
    TRAIN_TAG_WEIGHTS,
    check_metadata,
    grammar_size,
    sample_metadata,
)
from star.prompts.grammar import (
    Form,
    Prompt,
    draw_test,
    draw_train,
    identities,
    identity,
    plain_text,
)
from star.prompts.ocr import (
    MINIATURE_TEMPLATES,
    TEMPLATES,
    draw_signs,
    read_ocr_file,
    shuffled_words,
    test_words,
)
from star.prompts.published import fetched_file
from star.prompts.records import PromptRecord, parse_object, read_lines, texts_of
from star.prompts.words import WORDS
from star.system.errors import StarError

# World -> object classes and sign sentences.
WORLDS = {"miniature": (MINIATURE_CLASSES, MINIATURE_TEMPLATES), "coco": (COCO_CLASSES, TEMPLATES)}


def prepare(
    task: str, prompts: PromptsParams, seed: int
) -> tuple[list[PromptRecord], list[PromptRecord]]:
    """Return the training and the test prompts of a task.

    No training prompt equals a test prompt of any task, drawn, taken from its test file or left
    there (`star.prompts.grammar.identity`): each training is evaluated on all test sets.

    Args:
        task: one of `star.config.params.TASKS`.
        prompts, seed: the two sections of the parameters that decide it.

    Raises:
        StarError: a malformed file (file and line), one that cannot be fetched (see
            `star.prompts.published`), or more prompts asked for than there are (key and maximum).
    """
    sets: PromptSetParams = getattr(prompts, task)
    classes, templates = WORLDS[prompts.world]
    test, held_out = _test_sets(task, prompts, seed)
    excluded = identities(held_out)
    test_rng, train_rng = _generators(task, seed)
    if sets.train_file:
        given = _read(task, "train_file", prompts, print)
        if task == "preference":  # captions that people sent more than once
            first: dict[str, Prompt] = {}
            for prompt in given:
                first.setdefault(plain_text(prompt), prompt)
            given = list(first.values())
        given = [prompt for prompt in given if identity(prompt).isdisjoint(excluded)]
        train = _take(given, train_rng.permutation(len(given)), sets.train, task, "train")
    elif task == "ocr":
        taken = {text.upper() for prompt in held_out for text in texts_of(prompt.metadata)}
        words = [word for word in shuffled_words(test_rng) if word not in taken]
        train = draw_signs(words, sets.train, templates, "train")
    else:
        forms = _forms(task, classes, templates)
        train = draw_train(forms, sets.train, excluded, train_rng, task)
    return _records(task, "train", train), _records(task, "test", test)


def _test_sets(wanted: str, prompts: PromptsParams, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Return the test set of the wanted task, and what training must leave out for all tasks.

    A drawn one of preference begins with the drawn ones of the others: a small grammar has too few
    prompts to leave out three sets."""
    classes, templates = WORLDS[prompts.world]
    tests: dict[str, list[Prompt]] = {}
    held_out: list[Prompt] = []
    drawn: list[Prompt] = []
    for task in TASKS:
        sets: PromptSetParams = getattr(prompts, task)
        rng, _ = _generators(task, seed)
        if sets.test_file:
            say = print if task == wanted else _unsaid
            given = _read(task, "test_file", prompts, say)
            tests[task] = _take_distinct(given, rng, sets.test, task)
            held_out += given
            continue
        if task == "ocr":
            train = 0 if sets.train_file else sets.train
            words = test_words(shuffled_words(rng), sets.test, train, templates)
            tests[task] = draw_signs(words, sets.test, templates, "test")
        else:
            tests[task] = draw_test(_forms(task, classes, templates), sets.test, rng, drawn)
        drawn += tests[task]
        held_out += tests[task]
    return tests[wanted], held_out


def _generators(task: str, seed: int) -> tuple[np.random.Generator, np.random.Generator]:
    """Return what draws the test and what draws the training prompts of a task."""
    test, train = np.random.SeedSequence([seed, TASKS.index(task)]).spawn(2)
    return np.random.default_rng(test), np.random.default_rng(train)


def _forms(task: str, classes: tuple[str, ...], templates: tuple[str, ...]) -> tuple[Form, ...]:
    """Return GenEval's forms as published; for preference the same, equally often, and signs."""

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
    # GenEval's test set has every single object.
    return (*(caption_form(tag, float(tag in TRAIN_TAG_WEIGHTS)) for tag in TAGS), signs)


def _read(task: str, key: str, prompts: PromptsParams, say: Callable[[str], None]) -> list[Prompt]:
    """Return the prompts of a file in the published form; says what is left out or in doubt."""
    file: str | PromptSource = getattr(getattr(prompts, task), key)
    name = f"prompts.{task}.{key}"
    path = file if isinstance(file, str) else str(fetched_file(file, name))
    if not Path(path).is_file():
        raise StarError(
            f"{name}: {path!r}: no file at {Path(path).absolute()}; give its path from the "
            f"folder where star starts, as data/prompts/{Path(path).name}"
        )
    if task == "geneval":
        return _read_geneval_file(path, WORLDS[prompts.world][0], say)
    return read_ocr_file(path, say) if task == "ocr" else _read_preference_file(path, say)


def _unsaid(message: str) -> None:
    """Leave out what the run for the other task says."""


def _read_geneval_file(
    path: str, classes: tuple[str, ...], say: Callable[[str], None]
) -> list[Prompt]:
    prompts, others = [], set()
    for number, text in read_lines(path):
        given = parse_object(text, f"{path}:{number}")
        line = check_metadata(given, classes, f"{path}:{number}")
        others |= given.keys() - line.keys()
        prompts.append(Prompt(line["prompt"], line))
    if others:
        say(f"{path}: keys that GenEval's rules do not use left out: {', '.join(sorted(others))}")
    return prompts


def _read_preference_file(path: str, say: Callable[[str], None]) -> list[Prompt]:
    """Read one prompt per line; lines without any word, which some captions are, are left out."""
    lines = [line for _, line in read_lines(path)]
    prompts = [Prompt(line, {}) for line in lines if any(map(str.isalnum, without_flags(line)))]
    if not prompts:
        raise StarError(f"{path}: no line has a word; it needs one prompt per line")
    if len(prompts) < len(lines):
        say(f"{path}: {len(lines) - len(prompts)} lines without a word left out")
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
        turns.append(seen[plain_text(prompt)])
        seen[plain_text(prompt)] += 1
    order = sorted(rng.permutation(len(prompts)), key=turns.__getitem__)
    return _take(prompts, order, count, task, "test")


def _records(task: str, split: str, prompts: Sequence[Prompt]) -> list[PromptRecord]:
    return [
        PromptRecord(f"{task}-{split}-{index:05d}", task, prompt.text, prompt.metadata)
        for index, prompt in enumerate(prompts)
    ]
