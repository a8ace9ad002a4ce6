"""The prompt stage: train and test sets of a task from the built-in grammars or from local files."""

from collections.abc import Callable, Sequence

import numpy as np

from star.errors import StarError
from star.miniature import world
from star.params import TASKS, Params, PromptSetParams
from star.prompts.geneval import COCO_CLASSES, TAGS, TRAIN_TAG_WEIGHTS, check_metadata
from star.prompts.grammar import Form, Prompt, draw_test, draw_train, identities, identity
from star.prompts.ocr import MINIATURE_TEMPLATES, TEMPLATES, draw_signs, read_ocr_file
from star.prompts.preference import caption_form, caption_forms, read_preference_file
from star.records import PromptRecord, parse_object, read_lines

# World -> object classes and sign sentences.
WORLDS = {"miniature": (world.CLASSES, MINIATURE_TEMPLATES), "coco": (COCO_CLASSES, TEMPLATES)}


def prepare(task: str, params: Params) -> tuple[list[PromptRecord], list[PromptRecord]]:
    """Train and test prompts of a task, determined by ``params.seed`` and ``params.prompts`` alone.

    The test set is drawn first; no training prompt equals a test prompt (`star.prompts.grammar.identity`).

    Args:
        task: one of `star.params.TASKS`.
        params: all parameters.

    Returns:
        Training records, test records.

    Raises:
        StarError: a malformed file (file and line), or more prompts asked for than there are (key and maximum).
    """
    sets: PromptSetParams = getattr(params.prompts, task)
    classes, templates = WORLDS[params.prompts.world]
    seeds = np.random.SeedSequence([params.seed, TASKS.index(task)]).spawn(2)
    test_rng, train_rng = map(np.random.default_rng, seeds)
    read = _reader(task, classes)
    test = _take(read(sets.test_file), sets.test, f"prompts.{task}.test", test_rng) if sets.test_file else None
    if task == "ocr":
        train, test = _draw_ocr(sets, templates, test, test_rng)
    else:
        forms = _geneval_forms(classes) if task == "geneval" else caption_forms(classes, templates)
        test = test or draw_test(forms, sets.test, test_rng)
        train = [] if sets.train_file else draw_train(forms, sets.train, identities(test), train_rng, task)
    if sets.train_file:
        held_out = identities(test)
        kept = [prompt for prompt in read(sets.train_file) if identity(prompt).isdisjoint(held_out)]
        train = _take(kept, sets.train, f"prompts.{task}.train", train_rng)
    return _records(task, "train", train), _records(task, "test", test)


def _draw_ocr(
    sets: PromptSetParams, templates: tuple[str, ...], test: list[Prompt] | None, rng: np.random.Generator
) -> tuple[list[Prompt], list[Prompt]]:
    """Signs for whatever does not come from a file."""
    taken = frozenset(prompt.metadata["text"].upper() for prompt in test or ())
    train_count = 0 if sets.train_file else sets.train
    drawn_test, train = draw_signs(0 if test else sets.test, train_count, templates, taken, rng)
    return train, test or drawn_test


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

    return {"geneval": read_geneval_file, "ocr": read_ocr_file, "preference": read_preference_file}[task]


def _take(prompts: Sequence[Prompt], count: int, key: str, rng: np.random.Generator) -> list[Prompt]:
    """A random choice of ``count`` prompts of a file, in the file's order."""
    if count > len(prompts):
        left = " that are not in the test set" if key.endswith("train") else ""
        raise StarError(f"{key}: {count} prompts asked for, the file gives at most {len(prompts)}{left}; lower {key}")
    return [prompts[index] for index in sorted(rng.choice(len(prompts), size=count, replace=False))]


def _records(task: str, split: str, prompts: Sequence[Prompt]) -> list[PromptRecord]:
    return [
        PromptRecord(f"{task}-{split}-{index:05d}", task, prompt.text, prompt.metadata)
        for index, prompt in enumerate(prompts)
    ]
