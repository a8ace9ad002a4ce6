"""Drawing prompt sets from a grammar: the test set first, then a training mixture that never holds
a test prompt."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from star.prompts.flags import without_flags
from star.prompts.geneval import clauses_in
from star.prompts.records import texts_of
from star.system.errors import StarError

# Of a small form (the miniature has 48 counting prompts) the test set holds at most this share,
# then repeats itself.
TEST_SHARE = 0.75
MAX_MISSES = 10_000
_OPPOSITE = {"right of": "left of", "below": "above"}


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

    They are the text up to case, spaces, final stop and flags, and the content of GenEval's include
    clauses: files spell plurals in more than one way ("two couchs", "two couches")."""
    keys = {plain_text(prompt)}
    if include := prompt.metadata.get("include") or clauses_in(" ".join(prompt.text.split())):
        keys.add(_content(include))
    return frozenset(keys)


def plain_text(prompt: Prompt) -> str:
    """Return the text up to case, spaces, final stop and flags."""
    return " ".join(without_flags(prompt.text).casefold().split()).rstrip(" .")


def drawn_identity(prompt: Prompt) -> frozenset[str]:
    """Return `identity` of a prompt that is drawn, for which any sign with its word is the same."""
    return identity(prompt) | {f"sign\n{text.upper()}" for text in texts_of(prompt.metadata)}


def identities(prompts: Collection[Prompt]) -> set[str]:
    """Return all that a training set must not touch."""
    return set().union(*map(drawn_identity, prompts))


def _content(include: list[dict]) -> str:
    """Return what clauses ask for, in whatever order: A left of B is B right of A."""
    clauses = ({k: v for k, v in clause.items() if k != "position"} for clause in include)
    things = [json.dumps(clause, sort_keys=True) for clause in clauses]
    relations = []
    for thing, clause in zip(things, include, strict=True):
        if "position" in clause:
            relation, other = clause["position"]
            pair = [thing, things[other]]
            if relation in _OPPOSITE:
                relation, pair = _OPPOSITE[relation], pair[::-1]
            relations.append([relation, *pair])
    return json.dumps([sorted(things), sorted(relations)])


def draw_test(
    forms: Sequence[Form], count: int, rng: np.random.Generator, first: Sequence[Prompt] = ()
) -> list[Prompt]:
    """Draw ``count`` prompts, the forms in turn, so that every prefix is balanced.

    No prompt appears twice before its form is used up: `TEST_SHARE` of a form that is also trained
    on, else all of it. Those of ``first`` come first: the fewer different test prompts there are,
    the more are left for training."""
    known: dict[str, list[Prompt]] = {}
    for prompt in first:
        known.setdefault(prompt.metadata.get("tag", "sign"), []).append(prompt)
    each = -(-count // len(forms))
    columns = [_draw_distinct(form, each, rng, known.get(form.name, [])) for form in forms]
    return [prompt for row in zip(*columns, strict=True) for prompt in row][:count]


def draw_train(
    forms: Sequence[Form],
    count: int,
    excluded: Collection[str],
    rng: np.random.Generator,
    task: str,
) -> list[Prompt]:
    """Draw ``count`` prompts of the forms' mixture; a prompt may repeat, none is ``excluded``
    (`identities`).

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
        if drawn_identity(prompt).isdisjoint(excluded):
            return prompt
    raise StarError(
        f"prompts.{task}: the test sets of all tasks hold every {form.name} prompt of the grammar "
        f"and leave none for training; shorten them or give prompts.{task}.train_file"
    )


def _draw_distinct(
    form: Form, count: int, rng: np.random.Generator, known: Sequence[Prompt]
) -> list[Prompt]:
    available = max(1, int(form.size * TEST_SHARE)) if form.train_weight else form.size
    drawn = {prompt.text: prompt for prompt in known}
    while len(drawn) < min(count, available):
        prompt = form.draw(rng)
        drawn.setdefault(prompt.text, prompt)
    distinct = list(drawn.values())[: min(count, available)]
    return [distinct[index % len(distinct)] for index in range(count)]
