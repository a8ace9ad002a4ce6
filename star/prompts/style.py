"""What of a prompt tells style: how an image is made, by whom, and how it looks."""

import re

from star.prompts import vocabulary as known

Words = tuple[str, ...]

MARK = "\0"  # stands for each letter of an artist's clause
# No words: <lora:...>, Midjourney's --ar 16:9, and fixed phrases of style.
_NO_WORDS = re.compile(
    r"<[^<>]{1,200}>|(?<!\S)--(?!no\b)\w+(?:[ =](?:\.?\d[\w:.]*|raw))?"
    rf"|\b(?:{known.STYLE_PHRASES})\b",
    re.IGNORECASE,
)
# "by greg rutkowski", but not "by the sea", "side by side" or "tied by ropes"; it ends before "of".
_ARTIST = re.compile(
    r"\b(?:(?:in\s+)?(?:(?:the|an?)\s+)?style\s+of|inspired\s+by|by\s+"
    r"(?!(?:the|an?|my|his|her|its|their|our|your|side|night|day|moonlight|candlelight|foot|two"
    r"|\w+ing)\b)\w)"
    r"(?:(?!\s+(?:by|with|showing|depicting|featuring|of(?!\s+the))\b)"
    r"(?:[^,;:!?.()\[\]{}|\n]|(?<=\b\w)\.|\.(?=\w)))*",
    re.IGNORECASE,
)
# "an oil painting of" at a segment's start is how, not what.
MEDIUM = re.compile(
    r"\s*(?:(?!(?:\w+ing|[a-z]*[a-rtv-z]s|with|in|on|and|of|beside|near)\s)[\w'-]+\s+){0,5}?"
    rf"(?:{known.MEDIUM_OF})s?[\s{MARK}]+(?:of|showing|depicting)\b",
    re.IGNORECASE,
)
_WORD_BEFORE = re.compile(r"[^\W_]+")


def without_style(prompt: str) -> str:
    """Return a prompt of the same length without fixed phrases of style and artists' clauses."""
    text = _NO_WORDS.sub(lambda match: "|" * len(match.group()), prompt)
    return _ARTIST.sub(_marked, text)


def _marked(clause: re.Match[str]) -> str:
    """Return marks for an artist's clause, and "by ropes" as it is."""
    before = _WORD_BEFORE.findall(clause.string[max(clause.start() - 40, 0) : clause.start()])
    last = before[-1].lower() if before else ""
    done = known.is_participle(last) or last in known.FUNCTION_WORDS  # "tied together by ropes"
    by, name = clause.group()[:2].lower() == "by", clause.group()[3:4].isupper()
    maker = last in known.MAKING - {"drawn"} or (last in ("made", "drawn") and name)
    if by and done and not maker:
        return clause.group()
    return MARK * len(clause.group())


def is_style(words: Words, before: str) -> bool:
    """Tell whether a run of words names no thing; ``before`` is the word before it, or ""."""
    *modifiers, last = words
    if last in known.STYLE_HEADS or known.STYLE_PATTERN.fullmatch(" ".join(words)):
        return True
    if not before and not known.STYLE_NAMES.isdisjoint(words):
        return True
    if last in known.MEDIA and not known.MEDIUM_MODIFIERS.isdisjoint(modifiers):
        return True
    return before in ("", "and") and all(map(_tells_style, words))


def _tells_style(word: str) -> bool:
    return word in known.STYLE or word.isdigit()


def is_style_segment(every: Words, runs: list[tuple[Words, str]], language: str) -> bool:
    """Tell whether a segment is style, or begins with it and goes on without a verb.

    Args:
        every: its words in lower case.
        runs: the words of each run, and the word before it.
        language: two letters.
    """
    foreign = (
        word for words, _ in runs for word in words if language != "en" or not word.isascii()
    )
    if any(word.startswith(known.STYLE_STEMS) for word in foreign):
        return True
    if every[0] in known.MAKING or (every[0] in known.MEDIA and every[1:2] == ("on",)):
        return True
    plain = [word for word in every if word not in known.FUNCTION_WORDS and word[-2:] != "ly"]
    medium = bool(plain) and plain[-1] in known.MEDIA  # "a surrealist painting"
    bare = known.DETERMINERS.isdisjoint(every)  # "highly detailed and sleek"
    telling = all(_tells_style(word) or known.is_adjective(word) for word in plain)
    if plain and telling and (medium or bare):
        return True
    if are_artists(every) or (medium and [words for words, _ in runs] == [every]):
        return True  # "business logo"
    return bool(runs) and is_style(*runs[0]) and known.THIRD_PERSON.isdisjoint(every)


def are_artists(every: Words) -> bool:
    """Tell whether words are known names, of four words at most, joined by "and"."""
    names = [name.split() for name in " ".join(every).removeprefix("and ").split(" and ")]
    return all(
        len(name) <= 4 and any(" ".join(name[i:]) in known.ARTISTS for i in range(len(name)))
        for name in names
    )


def may_be_artists(every: Words) -> bool:
    """Tell whether artists may go on here: "by Monet, Ross Tran and Artgerm"."""
    names = [word for word in every if word != "and"]
    return known.FUNCTION_WORDS.isdisjoint(names) and not any(map(known.is_adjective, names))
