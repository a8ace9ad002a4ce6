"""Prompts that ask for words in the image: what they quote, as in Flow-GRPO's OCR set."""

import html
import re
from collections.abc import Callable

import numpy as np

from star.prompts.grammar import Prompt
from star.prompts.records import read_lines
from star.prompts.words import WORDS, read_list
from star.system.errors import StarError

TEMPLATES = read_list("sign_templates.txt")  # in the manner of the published set
MINIATURE_TEMPLATES = TEMPLATES[:1]  # the miniature's world draws one kind of sign
QUOTE_IT = 'no quoted span; write the word to be drawn as "WORD" in double quotes'

# Without a limit of length, many “ alone would take quadratic time. After a digit a mark is of
# inches and opens nothing.
_PAIRS = re.compile(
    r"""(?<!\d)"([^"]*)"|“([^“”]{0,300})”|“([^“”"]{0,300})"|``(.{0,300}?)(?:''|``|")"""
    r"|(?<!\d)''(.{0,300}?)''"
    r"|„([^„“”]*)[“”]|«([^«»]*)»|»([^«»]*)«|‹([^‹›]*)›|「([^「」]*)」|『([^『』]*)』|《([^《》]*)》"
    r"|(?<!\d)”([^”]{0,300})”"
)
# Read where there is no other quotation. An apostrophe opens none: not after a letter, not in 'n',
# '90s or 'tis. It closes none before a letter.
_SINGLE = re.compile(
    r"(?<!\w)'(?=[^\s'])(?!n'|\d0s|[Tt]is\b)((?:[^'\n]|'(?=\w)){1,300})(?<!\s)'(?!\w)"
    r"|(?<!\w)[‘‚]([^‘’]*(?:’(?=\w)[^‘’]*)*)[’‘](?!\w)|(?<!\w)`([^`'\n]{1,300})[`'](?!\w)"
)
_LEFT_OVER = re.compile(r"""(?<!\d)["“”„«»]|``|(?<!\d)''""")
_FULL_WIDTH = str.maketrans("＂＇", "\"'")
_ESCAPED = re.compile(r"""&#?\w+;|\\["']""")
_REPORTED = 5  # lines shown in a report


def quoted_spans(prompt: str) -> list[tuple[int, int]]:
    """Return the characters inside each quotation, without outer spaces.

    Single quotes count where there are no others. A quotation without a word is none, a repeated
    one counts once."""
    spans: dict[str, tuple[int, int]] = {}
    for match in _quotations(prompt):
        start, end = match.span(match.lastindex or 0)
        inside = prompt[start:end]
        if any(map(str.isalnum, inside)):
            start += len(inside) - len(inside.lstrip())
            end -= len(inside) - len(inside.rstrip())
            spans.setdefault(" ".join(inside.casefold().split()), (start, end))
    return list(spans.values())


def _quotations(prompt: str) -> list[re.Match[str]]:
    prompt = prompt.translate(_FULL_WIDTH)
    return list(_PAIRS.finditer(prompt)) or list(_SINGLE.finditer(prompt))


def _in_doubt(prompt: str, texts: list[str]) -> bool:
    """Tell whether a person should look at what is taken of a prompt."""
    matches = _quotations(prompt)
    ends = [0, *(place for match in matches for place in match.span()), len(prompt)]
    outside = " ".join(prompt[a:b] for a, b in zip(ends[::2], ends[1::2], strict=True))
    everything = len(texts[0]) > len(prompt) - 4 and " " in texts[0]
    return len(texts) > 1 or everything or bool(_LEFT_OVER.search(outside))


def shuffled_words(rng: np.random.Generator) -> list[str]:
    """Return the word list in another order."""
    return [WORDS[index] for index in rng.permutation(len(WORDS))]


def test_words(words: list[str], test: int, train: int, templates: tuple[str, ...]) -> list[str]:
    """Return the first words, for ``test`` prompts; enough are left for ``train`` ones.

    Raises:
        StarError: more test prompts than the words and templates give.
    """
    test_least, train_least = -(-test // len(templates)), -(-train // len(templates))
    if test_least + min(1, train_least) > len(words):
        raise _too_many("test", test, (len(words) - train_least) * len(templates))
    return words[: max(test_least, min(test, len(words) - train_least))]


def draw_signs(
    words: list[str], count: int, templates: tuple[str, ...], split: str
) -> list[Prompt]:
    """Return prompts with every word once before any comes twice, then in its next template.

    Raises:
        StarError: more prompts than the words and templates give; names ``split``.
    """
    if count > len(words) * len(templates):
        raise _too_many(split, count, len(words) * len(templates))
    prompts = []
    for index in range(count):
        turn, place = divmod(index, len(words))
        template = templates[(place + turn) % len(templates)]
        prompts.append(Prompt(template.format(words[place]), {"text": words[place]}))
    return prompts


def _too_many(split: str, asked: int, most: int) -> StarError:
    known = f"{asked} prompts asked for, the word list gives at most {max(0, most)}"
    return StarError(f"prompts.ocr.{split}: {known}; lower it")


def read_ocr_file(path: str, say: Callable[[str], None]) -> list[Prompt]:
    """Read a text file in the published form: one prompt per line, each with a quoted span.

    HTML's entities and escaped quotation marks are read as what they stand for. Says which texts
    are taken of the lines where that is in doubt.

    Raises:
        StarError: unreadable file, or a line without a quoted span, by file and line.
    """
    prompts, doubts = [], []
    for number, line in read_lines(path):
        line = _ESCAPED.sub(lambda mark: html.unescape(mark[0].lstrip("\\")), line)
        texts = [line[slice(*span)] for span in quoted_spans(line)]
        if not texts:
            raise StarError(f"{path}:{number}: {QUOTE_IT}")
        prompts.append(Prompt(line, {"text": texts[0] if len(texts) == 1 else texts}))
        if _in_doubt(line, texts):
            doubts.append(f"{number}: {' + '.join(map(repr, texts))}")
    if doubts:
        shown = "; ".join(doubts[:_REPORTED]) + ("; ..." if len(doubts) > _REPORTED else "")
        say(f"{path}: {len(doubts)} lines with doubtful quotations; to be drawn by line {shown}")
    return prompts
