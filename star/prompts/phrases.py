"""Noun phrases of free prompts, by rules and word classes alone: no tagger, nothing to download.

A prompt is cut at punctuation into segments and these at function words, verbs and participles into
runs of words. What remains of a run is a phrase, unless its last word names a place, a time or a
style ("8k, soft lighting, by ..."). The rules are for English; of other languages only the function
words and a few style words are known. In doubt a word is kept."""

import re
from dataclasses import dataclass

from star.prompts import vocabulary as known

Span = tuple[int, int]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<!\b[^\W\d_])[.!?](?=\s|$)|[。！？\n]")
_SEPARATOR = re.compile(
    r"[,;:|.!?()\[\]{}<>\"“”„«»「」『』、，。；：！？（）【】\n]+|\s[-–—/]+\s|—"
)
_LORA = re.compile(r"<[^<>]{1,200}>")
_JOINT = re.compile(r"\s*|['’]\s+")  # between two words of one phrase
_HIRAGANA = re.compile(r"[\u3041-\u309f]")
# Kanji that a particle or nothing follows, or katakana: with other hiragana after it kanji are a
# verb or an adjective.
_JAPANESE_NOUN = re.compile(
    r"[\u30a1-\u30faー]+|[A-Za-z]+"
    r"|[\u3400-\u9fff々]+(?=[のをにがはでともやへ]|から|まで|[^\u3041-\u309f\u3400-\u9fff]|$)"
)
# "by greg rutkowski" and all that follows it in its sentence, but not "by the sea", "side by side"
# or "tied by ropes".
_ARTIST = re.compile(
    r"\b(?:in\s+the\s+style\s+of|inspired\s+by|by\s+"
    r"(?!(?:the|an?|my|his|her|its|their|our|your|side|night|day|moonlight|candlelight|foot|two"
    r"|\w+ing)\b)\w)",
    re.IGNORECASE,
)
# "an oil painting of" at a segment's start is how, not what.
_MEDIUM = re.compile(
    r"\s*(?:(?!(?:\w+ing|[a-z]*[a-rtv-z]s|with|in|on|and|of|beside|near)\s)[\w'-]+\s+){0,5}?"
    r"(?:photo(?:graph)?|picture|image|painting|portrait|drawing|illustration|sketch|print|still"
    r"|render(?:ing)?|close[\s-]?up|shot|view|design|artwork|art|depiction|scene|watercolou?r"
    r"|engraving|rendition|snapshot)s?\s+(?:of|showing|depicting)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Run:
    """Words that stand together in a segment, in lower case.

    ``before`` is the word before them, "" at the segment's start."""

    start: int
    end: int
    words: tuple[str, ...]
    before: str


def subject_phrases(prompt: str) -> list[Span]:
    """Return the characters of the noun phrases that say what a prompt is about, in order.

    The list is empty where the rules find none."""
    text = _LORA.sub(lambda match: "|" * len(match.group()), prompt)
    language = language_of(text)
    phrases: list[Span] = []
    for start, stop in _pieces(text, _SENTENCE_END, 0, len(text)):
        segments = _pieces(text, _SEPARATOR, start, _artist(text, start, stop))
        read = [_runs(text, *segment, language) for segment in segments]
        tokens = [text[a:b].lower().split() for a, b in segments]
        style = [_is_style_segment(*pair, language) for pair in zip(tokens, read, strict=True)]
        if phrases and style and style[0] and _is_of_style_alone(tokens[0], read[0]):
            continue  # "The mood is calm, with ...", "Painted in rich, saturated colours with ..."
        for index, runs in enumerate(read):
            medium = bool(runs) and runs[0].before == "" and runs[0].words[-1] in known.MEDIA
            if phrases and (style[index] or (medium and all(style[index + 1 : index + 2]))):
                continue
            kept = (run for run in runs if not _is_style(run) and not _is_omitted(run))
            phrases += [(run.start, run.end) for run in kept]
    return phrases


def words(prompt: str) -> list[Span]:
    """Return the characters of each word: letters and digits of any script.

    Inner hyphens and apostrophes join."""
    return [match.span() for match in _WORD.finditer(prompt)]


def content_words(prompt: str) -> list[Span]:
    """Return the words that are not function words, or all words where there is no other."""
    every = words(prompt)
    return [(a, b) for a, b in every if prompt[a:b].lower() not in known.FUNCTION_WORDS] or every


def language_of(text: str) -> str:
    """Return the two letters of a text's language: English unless another has more function
    words."""
    if _HIRAGANA.search(text):
        return "ja"
    every = [word.lower() for word in re.findall(r"[^\W\d_]+", text)]
    telling = [word for word in every if word not in known.HOMOGRAPHS]

    def counts(name: str) -> tuple[int, int]:
        of_it = known.LANGUAGES[name]
        return sum(word in of_it for word in telling), sum(word in of_it for word in every)

    best = max(known.LANGUAGES, key=counts)
    found, _ = counts(best)
    foreign = found > sum(word in known.FUNCTION_WORDS for word in every)
    return best if foreign and (found > 1 or not text.isascii()) else "en"


def _pieces(text: str, separator: re.Pattern[str], start: int, stop: int) -> list[Span]:
    """Return what lies between the separators and has a word."""
    cuts = [match.span() for match in separator.finditer(text, start, stop)]
    starts = [start, *(end for _, end in cuts)]
    ends = [*(begin for begin, _ in cuts), stop]
    return [(a, b) for a, b in zip(starts, ends, strict=True) if _WORD.search(text, a, b)]


def _artist(text: str, start: int, stop: int) -> int:
    """Return where the artists' names begin that end a sentence, or its end if there are none."""
    for match in _ARTIST.finditer(text, start, stop):
        before = _WORD.findall(text[max(match.start() - 40, start) : match.start()])
        last = before[-1].lower() if before else ""
        done = _is_participle(last) or last in known.FUNCTION_WORDS  # "tied together by ropes"
        made = last in known.MAKING and match.group()[-1].isupper()
        if match.group()[:2].lower() != "by" or not done or made:
            return match.start()
    return stop


def _runs(text: str, start: int, stop: int, language: str) -> list[_Run]:
    """Return the words of a segment that its language's rules leave together, without what is
    negated."""
    if language == "ja":
        nouns = _JAPANESE_NOUN.finditer(text, start, stop)
        return [_Run(*noun.span(), (noun.group(),), "") for noun in nouns]
    medium = _MEDIUM.match(text, start, stop)
    start = medium.end() if medium else start
    spans = [match.span() for match in _WORD.finditer(text, start, stop)]
    every = [text[a:b].lower() for a, b in spans]
    gaps = zip(spans, spans[1:], strict=False)
    joined = [False, *(bool(_JOINT.fullmatch(text, a, b)) for (_, a), (b, _) in gaps), False]
    runs: list[_Run] = []
    first = None  # index of the open run's first word
    excluding = written = False
    for index, word in enumerate([*every, ""]):
        if written:
            cut = not word or word in known.BEHIND_WRITING
        else:
            cut = not word or _cuts(every, index, index if first is None else first, language)
        if first is not None and (cut or not joined[index]):
            before = every[first - 1] if joined[first] else ""
            german = text if language == "de" else ""
            run = _trimmed(every[first:index], spans[first:index], before, german)
            runs += [run] if run and not excluding else []
            excluding = excluding and word in ("and", "or", "nor", "of")
            first = None
        if not cut:
            first = index if first is None else first
        else:
            last = every[index - 1] if index else ""
            likeness = word == "like" and last in known.LIKENESS
            excluding |= word in known.EXCLUDING and not likeness
            written = word in ("says", "saying") or (word == "reads" and last == "that")
    return runs


def _cuts(every: list[str], index: int, first: int, language: str) -> bool:
    """Tell whether a word ends the run that began at ``first`` and is no part of another.

    ``first`` is the word's own index where no run is open."""
    word = every[index]
    before = every[index - 1] if index else ""
    after = every[index + 1] if index + 1 < len(every) else ""
    opener = every[first - 1] if first else ""
    if language != "en":
        gerund = language in ("es", "it", "pt") and index and word.endswith(("ando", "endo"))
        return word in known.LANGUAGES[language] or bool(gerund)
    if word == "and" and first < index and {before, after} <= known.COLORS:
        return False
    if word in known.FUNCTION_WORDS or (word.endswith("ly") and word not in known.NOT_ADVERBS):
        return True
    named = any(not _is_adjective(other) for other in every[max(first, index - 8) : index])
    determined = opener in known.DETERMINERS
    ends = not after or after in known.FUNCTION_WORDS
    if after in known.ARTICLES and (named or not (determined or opener in known.PREPOSITIONS)):
        return True  # no noun stands before an article, but a verb does
    if before in known.MODALS or after == "than":
        return True
    if word.endswith("ing") and len(word) > 4 and word not in known.ING_NOUNS:
        leads = ends or (index == first and word in known.TRANSITIVE_ING)
        return named or (not determined and leads)
    if _is_participle(word):
        last = ends and (named or not determined) and after not in ("and", "or")
        return before in known.BE or last
    plural = before.endswith("s") or before in known.PLURALS
    plural = plural and first < index and not before.endswith("ss")
    verb = word in known.VERBS and (plural or before in ("to", "and", "they"))
    if verb or word in known.THIRD_PERSON:
        return not determined or named
    if not after or after in ("and", "or", "of"):
        return False  # of a word that is a noun as well, this is one
    if word in known.THIRD_PERSON_NOUNS and (ends or after in known.ADJECTIVES):
        several = every[first] in known.NUMBERS
        begins = index == first and opener in known.SUBJECTS
        return not several and ((named and not plural) or begins)
    return word in known.VERB_NOUNS and plural and named and ends


def _is_adjective(word: str) -> bool:
    if word in known.ADJECTIVES or word.isdigit():
        return True
    noun = word.endswith("fish") or word in known.NOT_ADJECTIVES
    return word.endswith(known.ADJECTIVE_ENDINGS) and not noun


def _is_participle(word: str) -> bool:
    regular = word.endswith("ed") and not word.endswith("eed") and len(word) > 4
    return (regular and word not in known.ED_NOUNS) or word in known.PARTICIPLES


def _trimmed(found: list[str], spans: list[Span], before: str, german: str) -> _Run | None:
    """Return the run without adjectives behind its noun; None if numbers alone are left.

    ``german`` is the text where it is German: its nouns have capitals, and a run ends with one."""
    while len(found) > 1 and found[-1] in known.AFTER_NOUN and not _is_adjective(found[-2]):
        found.pop()
    if german:
        capitals = [index for index in range(len(found)) if german[spans[index][0]].isupper()]
        found = found[: capitals[-1] + 1] if capitals else found
    if all(word.isdigit() for word in found):
        return None
    return _Run(spans[0][0], spans[len(found) - 1][1], tuple(found), before)


def _is_omitted(run: _Run) -> bool:
    last = run.words[-1]
    if last in known.OMITTED or (run.words == ("camera",) and run.before in ("at", "the")):
        return True  # the camera takes the image
    if run.before in known.BE and all(map(_is_adjective, run.words)):
        return True  # "the sky is purple"
    led = run.before and run.before not in known.DETERMINERS
    if led and known.AFTER_NOUN.issuperset(run.words):
        return True  # "hangs open"
    return run.before in ("at", "in", "during") and last in known.TIMES_AFTER_AT


def _is_style(run: _Run) -> bool:
    *modifiers, last = run.words
    if last in known.STYLE_HEADS or known.STYLE_PATTERN.fullmatch(" ".join(run.words)):
        return True
    if not run.before and not known.STYLE_NAMES.isdisjoint(run.words):
        return True
    medium = last in known.MEDIA
    if medium and not known.MEDIUM_MODIFIERS.isdisjoint(modifiers):
        return True
    rest = modifiers if medium and modifiers else run.words
    alone = all(word in known.STYLE_WORDS or word.isdigit() for word in rest)
    return run.before in ("", "and") and alone


def _is_style_segment(tokens: list[str], runs: list[_Run], language: str) -> bool:
    """Tell whether a segment begins with style and goes on without a verb."""
    foreign = (word for run in runs for word in run.words if language != "en" or not word.isascii())
    if any(word.startswith(known.STYLE_STEMS) for word in foreign):
        return True
    if tokens[0] in known.MAKING or (tokens[0] in known.MEDIA and tokens[1:2] == ["on"]):
        return True
    return bool(runs) and _is_style(runs[0]) and known.THIRD_PERSON.isdisjoint(tokens)


def _is_of_style_alone(tokens: list[str], runs: list[_Run]) -> bool:
    stated = tokens[0] in known.MAKING or not {"is", "are"}.isdisjoint(tokens)
    return stated or all(map(_is_style, runs))
