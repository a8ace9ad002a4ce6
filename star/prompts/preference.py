"""Prompts for the preference task: captions of the world (GenEval's six forms and signs), or any
file of prompts."""

import numpy as np

from star.prompts.geneval import TAGS, grammar_size, sample_metadata
from star.prompts.grammar import Form, Prompt
from star.prompts.records import read_lines
from star.prompts.words import WORDS
from star.system.errors import StarError


def caption_forms(classes: tuple[str, ...], templates: tuple[str, ...]) -> tuple[Form, ...]:
    """GenEval's forms over ``classes`` and signs over ``templates``, all with the same weight.

    The metadata keep what the image should show (``tag``, ``include``, ``exclude``? or ``text``).
    """

    def sign(rng: np.random.Generator) -> Prompt:
        word = WORDS[rng.integers(len(WORDS))]
        return Prompt(templates[rng.integers(len(templates))].format(word), {"text": word})

    captions = tuple(caption_form(tag, classes, 1.0) for tag in TAGS)
    return (*captions, Form("sign", len(WORDS) * len(templates), sign, 1.0))


def caption_form(tag: str, classes: tuple[str, ...], train_weight: float) -> Form:
    """One of GenEval's forms over ``classes``."""

    def draw(rng: np.random.Generator) -> Prompt:
        metadata = sample_metadata(tag, classes, rng)
        return Prompt(metadata["prompt"], metadata)

    return Form(tag, grammar_size(tag, len(classes)), draw, train_weight)


def read_preference_file(path: str) -> list[Prompt]:
    """Prompts of a text file, one a line; nothing is known of their contents.

    Lines without any word, which some captions of users are, have no content to look for and are
    left out.

    Raises:
        StarError: unreadable file, or no line with a word.
    """
    lines = [line for _, line in read_lines(path)]
    prompts = [Prompt(line, {}) for line in lines if any(map(str.isalnum, line))]
    if not prompts:
        raise StarError(f"{path}: no line has a word; it needs one prompt a line")
    if len(prompts) < len(lines):
        print(f"{path}: {len(lines) - len(prompts)} lines without a word left out")
    return prompts
