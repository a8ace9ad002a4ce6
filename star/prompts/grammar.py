"""Drawing prompt sets from a grammar: the test set first, then a training mixture that never holds
a test prompt."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from star.system.errors import StarError

# Of a small form (the miniature has 48 counting prompts) the test set holds at most this share,
# then repeats itself.
TEST_SHARE = 0.75
MAX_MISSES = 10_000


@dataclass(frozen=True)
class Prompt:
    """A prompt's text and its metadata (see `star.prompts.records.PromptRecord`)."""

    text: str
    metadata: dict


@dataclass(frozen=True)
class Form:
    """One form of prompts.

    ``size`` is how many different ones there are, ``train_weight`` the form's weight in the
    training mixture."""

    name: str
    size: int
    draw: Callable[[np.random.Generator], Prompt]
    train_weight: float


def identity(prompt: Prompt) -> frozenset[str]:
    """Return what makes two prompts the same, which is any one of these strings.

    They are the text up to case, spaces and final stop, and GenEval's include clauses: files spell
    plurals in more than one way ("two couchs", "two couches")."""
    keys = {" ".join(prompt.text.casefold().split()).rstrip(".")}
    if "include" in prompt.metadata:
        keys.add(json.dumps(prompt.metadata["include"], sort_keys=True))
    return frozenset(keys)


def identities(prompts: Collection[Prompt]) -> set[str]:
    """Return all that a training set must not touch."""
    return set().union(*map(identity, prompts))


def draw_test(forms: Sequence[Form], count: int, rng: np.random.Generator) -> list[Prompt]:
    """Draw ``count`` prompts, the forms in turn, so that every prefix is balanced.

    No prompt appears twice before its form is used up: `TEST_SHARE` of a form that is also trained
    on, else all of it."""
    columns = [_draw_distinct(form, -(-count // len(forms)), rng) for form in forms]
    return [prompt for row in zip(*columns, strict=True) for prompt in row][:count]


def draw_train(
    forms: Sequence[Form],
    count: int,
    excluded: Collection[str],
    rng: np.random.Generator,
    task: str,
) -> list[Prompt]:
    """Draw ``count`` prompts of the forms' mixture; a prompt may repeat, none is ``excluded``.

    Raises:
        StarError: the excluded prompts leave (next to) nothing of a form.
    """
    weights = np.array([form.train_weight for form in forms])
    chosen = rng.choice(len(forms), size=count, p=weights / weights.sum())
    return [_draw_outside(forms[index], excluded, rng, task) for index in chosen]


def _draw_outside(
    form: Form, excluded: Collection[str], rng: np.random.Generator, task: str
) -> Prompt:
    for _ in range(MAX_MISSES):
        prompt = form.draw(rng)
        if identity(prompt).isdisjoint(excluded):
            return prompt
    raise StarError(
        f"prompts.{task}.test_file: holds every {form.name} prompt of the grammar and leaves none "
        f"for training; shorten it or give prompts.{task}.train_file"
    )


def _draw_distinct(form: Form, count: int, rng: np.random.Generator) -> list[Prompt]:
    available = max(1, int(form.size * TEST_SHARE)) if form.train_weight else form.size
    drawn: dict[str, Prompt] = {}
    while len(drawn) < min(count, available):
        prompt = form.draw(rng)
        drawn.setdefault(prompt.text, prompt)
    distinct = list(drawn.values())
    return [distinct[index % len(distinct)] for index in range(count)]
