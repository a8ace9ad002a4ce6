"""Prompts that ask for a word in the image; the first quoted span is the target, as in
Flow-GRPO's OCR set."""

import re

import numpy as np

from star.prompts.grammar import Prompt
from star.prompts.records import read_lines
from star.prompts.words import WORDS, read_list
from star.system.errors import StarError

TEMPLATES = read_list("sign_templates.txt")  # in the manner of the published set
MINIATURE_TEMPLATES = TEMPLATES[:1]  # the miniature's world draws one kind of sign
QUOTE_IT = 'no quoted span; write the word to be drawn as "WORD" in double quotes'

# Without a limit of length, many “ alone would take quadratic time.
_DOUBLE = re.compile(r'"([^"]*)"|“([^”]{0,300})”')
# Read where there is no double quotation, or where one lies inside: „low“, «angle», »reversed«,
# 「corner」, ”same”.
_OTHER = re.compile(
    r"„([^„“”]*)[“”]|«([^«»]*)»|»([^«»]*)«|‹([^‹›]*)›|「([^「」]*)」|『([^『』]*)』|”([^”]{0,300})”"
)
# An apostrophe opens no quotation: not after a letter, not in 'n', '90s or 'tis. It closes none
# before a letter.
_SINGLE = re.compile(
    r"(?<!\w)'(?=[^\s'])(?!n'|\d0s|[Tt]is\b)((?:[^'\n]|'(?=\w)){1,300})(?<!\s)'(?!\w)"
    r"|(?<!\w)[‘‚]([^‘’]*(?:’(?=\w)[^‘’]*)*)[’‘](?!\w)"
)


def quoted_span(prompt: str) -> tuple[int, int] | None:
    """Return the characters inside the first quotation, without outer spaces.

    Double quotes (straight or curly) come first, as in the published set; then other pairs, then
    single quotes. None if there is no quotation, or no word in it."""
    match, other = _DOUBLE.search(prompt), _OTHER.search(prompt)
    if other and (match is None or other.start() < match.start() < other.end()):
        match = other
    match = match or _SINGLE.search(prompt)
    if match is None:
        return None
    start, end = match.span(match.lastindex or 0)
    inside = prompt[start:end]
    start += len(inside) - len(inside.lstrip())
    end -= len(inside) - len(inside.rstrip())
    return (start, end) if any(map(str.isalnum, prompt[start:end])) else None


def draw_signs(
    test: int,
    train: int,
    templates: tuple[str, ...],
    taken: frozenset[str],
    rng: np.random.Generator,
) -> tuple[list[Prompt], list[Prompt]]:
    """Draw different prompts for test and training, whose words are disjoint.

    Args:
        test, train: how many of each.
        templates: sentences with one place for a word.
        taken: words already in use, left out.
        rng: source of randomness, advanced.

    Raises:
        StarError: more prompts than the words and templates give.
    """
    words = [WORDS[index] for index in rng.permutation(len(WORDS)) if WORDS[index] not in taken]
    test_least, train_least = -(-test // len(templates)), -(-train // len(templates))
    if test_least + train_least > len(words):
        fits = test_least < len(words)
        key, asked, other = ("train", train, test_least) if fits else ("test", test, train_least)
        most = max(0, len(words) - other) * len(templates)
        known = f"{asked} prompts asked for, the word list gives at most {most}"
        raise StarError(f"prompts.ocr.{key}: {known}; lower it")
    split = max(test_least, min(test, len(words) - train_least))
    return _fill(words[:split], test, templates), _fill(words[split:], train, templates)


def _fill(words: list[str], count: int, templates: tuple[str, ...]) -> list[Prompt]:
    """Return prompts with every word once before any comes twice, then in its next template."""
    prompts = []
    for index in range(count):
        turn, place = divmod(index, len(words))
        template = templates[(place + turn) % len(templates)]
        prompts.append(Prompt(template.format(words[place]), {"text": words[place]}))
    return prompts


def read_ocr_file(path: str) -> list[Prompt]:
    """Read a text file in the published form: one prompt per line, each with a quoted span.

    Raises:
        StarError: unreadable file, or a line without a quoted span, by file and line.
    """
    prompts = []
    for number, line in read_lines(path):
        span = quoted_span(line)
        if span is None:
            raise StarError(f"{path}:{number}: {QUOTE_IT}")
        prompts.append(Prompt(line, {"text": line[slice(*span)]}))
    return prompts
