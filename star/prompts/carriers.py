"""The thing that bears the writing: the head noun of one noun phrase near the quotation."""

import re
from dataclasses import dataclass

from star.prompts import vocabulary as known
from star.prompts.phrases import Span, language_of, noun_phrases, words

# "a board, nailed to the wall, says": what stands between the commas is of the board.
_ASIDE = re.compile(
    r",\s+(?:\w+ly\s+)?(?:\w+ed|\w+ing|hung|held|made|bent|torn|worn|hidden)\b[^,;:.]*,(?=(?:\s+\w+){1,4}\W*$)"
)
# "with the ominous note", right before the quotation: the writing.
_WRITING = re.compile(
    r"(?<=\w)\s+(?:with|and|bearing|featuring|displaying|showing|by)\s+the(?:\s+[\w-]+){1,3}\W*$"
)
_HEAD_FIRST = ("es", "fr", "it", "pt")  # languages whose adjectives stand behind their noun


@dataclass(frozen=True)
class _Thing:
    """A noun phrase: its start, the characters of its noun, the noun, the word that leads to it."""

    start: int
    head: Span
    noun: str
    lead: str


def carrier_of(prompt: str, quoted: Span) -> Span | None:
    """Return the characters of the noun that carries a quotation, None if there is none.

    It is the noun right behind the quotation, or one before it, or the next that it is put on."""
    start, end = quoted
    lead_in = prompt[:start]
    for left_out in (_ASIDE, _WRITING):
        lead_in = left_out.sub(lambda match: " " * len(match[0]), lead_in)
    for a, b in words(lead_in)[-1:]:
        if lead_in[a:b] in known.FINITE:  # "the sign displays"
            lead_in = lead_in[:a].ljust(start)
    before, after = _things(lead_in + prompt[start:], 0, start), _things(prompt, end, len(prompt))
    if after and re.fullmatch(r"\W?[^\w,;:.]*", prompt[end : after[0].start]):
        return after[0].head
    if before:
        return _bearer(prompt[:start], before).head
    behind = ((end + b, prompt[end + a : end + b].lower()) for a, b in words(prompt[end:]))
    put = next((place for place, word in behind if word in known.PUT_ON), len(prompt))
    return next((thing.head for thing in after if thing.start >= put), None)


def _things(prompt: str, start: int, end: int) -> list[_Thing]:
    """Return the noun phrases of a part of the prompt, without those for the writing itself."""
    text = prompt[start:end]
    head = 0 if language_of(prompt) in _HEAD_FIRST else -1
    things = []
    for a, b in noun_phrases(text):
        x, y = words(text[a:b])[head]
        noun, place = text[a + x : a + y].lower(), (start + a + x, start + a + y)
        if noun not in known.WRITING | known.ADJECTIVES | known.STYLE_WORDS | known.AFTER_NOUN:
            things.append(_Thing(start + a, place, noun, _lead(text[max(0, a - 40) : a])))
    return things


def _lead(text: str) -> str:
    """Return the last word of a text, without articles and the "of" in "the front of"."""
    spelled = (text[a:b].lower() for a, b in words(text))
    every = ["", *(word for word in spelled if word not in known.DETERMINERS)]
    return every[-2] if every[-1] == "of" and every[-2] in known.PLACES else every[-1]


def _bearer(prompt: str, things: list[_Thing]) -> _Thing:
    """Return the last thing, or an earlier one of its clause that bears it.

    "A cup of tea" is a cup, "a sign in a street reading" a sign."""
    last = things[-1]
    apart = "," in prompt[last.head[1] :]  # the writing has a clause of its own
    clause = max(prompt.rfind(mark, 0, last.start) for mark in (";." if apart else ",;."))
    earlier = [thing for thing in things[:-1] if thing.start > clause]
    while last.lead == "of" and last.noun not in known.CARRIERS and earlier:
        if earlier[-1].noun in known.COLLECTIVES:
            break
        last = earlier.pop()
    if last.noun in known.CARRIERS or not (apart or last.lead in known.WHERE):
        return last
    return next((thing for thing in reversed(earlier) if thing.noun in known.CARRIERS), last)
