"""The thing that bears the writing: the head noun of one noun phrase near the quotation."""

import re
from dataclasses import dataclass

from star.prompts.phrases import Span, language_of, subject_phrases, words
from star.prompts.vocabulary import COLORS, DETERMINERS, PLACES, word_set

# What commonly carries writing: taken before a nearer thing that only says where it is ("a sign in
# a street reading").
_CARRIERS = word_set(
    """
    sign signboard signpost billboard banner poster label shirt t-shirt tshirt mug cup cover book page screen card
    board chalkboard whiteboard blackboard scoreboard storefront plaque sticker menu newspaper ticket stamp flag
    bottle box package cake display note map badge plate tattoo logo graffiti placard postcard tag mural notebook
    letter envelope magazine calendar certificate trophy medal hoodie jersey apron cap hat sweatshirt tombstone
    gravestone headstone scroll parchment marquee awning
    """
)
# The writing, its manner or a part of the thing that carries it.
_WRITING = word_set(
    """
    text title word words message letter letters lettering phrase quote slogan caption bold photo headline
    inscription writing font script calligraphy type typography handwriting characters icing ink paint name number
    logo sentence aufschrift schrift wort worten inschrift mot mots texte inscripción palabra palabras texto parola
    parole scritta letras lettres надписью надпись словом словами текстом side sides front back chest top bottom bow
    sleeve edge corner surface middle center centre
    """
)
# In "a stack of books" the books carry it, in "a cup of tea" the cup.
_COLLECTIVES = word_set(
    "row pair stack pile group line bunch set piece series collection sheet strip heap"
)
_WHERE = word_set(
    "in on at above below beside near by behind under outside inside of along across from to front next"
)
_PUT_ON = word_set(
    "on across over along onto into upon atop around down above sur auf sobre su над на en"
)
# "a board, nailed to the wall, says": what stands between the commas is of the board.
_ASIDE = re.compile(
    r",\s+(?:\w+ed|\w+ing|hung|held|made|bent|torn|worn|hidden)\b[^,;:.]*,(?=(?:\s+\w+){1,3}\W*$)"
)
_HEAD_FIRST = ("es", "fr", "it", "pt")  # adjectives stand behind their noun


@dataclass(frozen=True)
class _Thing:
    """A noun phrase: where it begins, the range of its noun, and the preposition or other word that
    leads to it."""

    start: int
    head: Span
    noun: str
    lead: str


def carrier_of(prompt: str, quoted: Span) -> Span | None:
    """The noun right behind the quotation, or one before it, or the next that it is put on; None if
    there is none."""
    start, end = quoted
    lead_in = _ASIDE.sub(lambda aside: " " * len(aside[0]), prompt[:start])
    before, after = _things(lead_in + prompt[start:], 0, start), _things(prompt, end, len(prompt))
    if after and re.fullmatch(r"\W?[^\w,;:.]*", prompt[end : after[0].start]):
        return after[0].head
    if before:
        return _bearer(prompt, before).head
    put = next(
        (end + b for a, b in words(prompt[end:]) if prompt[end + a : end + b].lower() in _PUT_ON),
        len(prompt),
    )
    return next((thing.head for thing in after if thing.start >= put), None)


def _things(prompt: str, start: int, end: int) -> list[_Thing]:
    """The noun phrases of a part of the prompt, without those for the writing itself."""
    text = prompt[start:end]
    head = 0 if language_of(prompt) in _HEAD_FIRST else -1
    things = []
    for a, b in subject_phrases(text):
        x, y = words(text[a:b])[head]
        noun = text[a + x : a + y].lower()
        if noun not in _WRITING and noun not in COLORS:
            things.append(
                _Thing(
                    start + a, (start + a + x, start + a + y), noun, _lead(text[max(0, a - 40) : a])
                )
            )
    return things


def _lead(text: str) -> str:
    """The last word of a text, articles and "of" in "the front of" left out."""
    every = [
        "",
        *(word for word in (text[a:b].lower() for a, b in words(text)) if word not in DETERMINERS),
    ]
    return every[-2] if every[-1] == "of" and every[-2] in PLACES else every[-1]


def _bearer(prompt: str, things: list[_Thing]) -> _Thing:
    """The last, or an earlier one of its clause: "a cup of tea" is a cup, "a sign in a street
    reading" a sign."""
    last = things[-1]
    clause = max(prompt.rfind(mark, 0, last.start) for mark in ",;.")
    earlier = [thing for thing in things[:-1] if thing.start > clause]
    while (
        last.lead == "of"
        and last.noun not in _CARRIERS
        and earlier
        and earlier[-1].noun not in _COLLECTIVES
    ):
        last = earlier.pop()
    if last.noun in _CARRIERS or last.lead not in _WHERE:
        return last
    return next((thing for thing in reversed(earlier) if thing.noun in _CARRIERS), last)
