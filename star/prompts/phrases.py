"""Noun phrases of free prompts, by rules and word classes alone: no tagger, nothing to download.

A prompt is cut at punctuation into segments and these at function words, verbs and participles into
runs of words. What remains of a run is a phrase, unless its last word names a place or a time, or
it tells style (style.py). The rules are for English; of other languages only the function
words and a few style words are known. In doubt a word is kept."""

import re
from dataclasses import dataclass

from star.prompts import style
from star.prompts import vocabulary as known

Span = tuple[int, int]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<!\b[^\W\d_])[.!?](?=\s|$)|[。！？\n]")
_SEPARATOR = re.compile(
    r"[,;:|.!?()\[\]{}<>\"“”„«»「」『』、，。；：！？（）【】\n]+|\s[-–—/]+\s|—"
)
_JOINT = re.compile(r"\s*|['’]\s+")  # between two words of one phrase
_OF_IMAGE = (("camera",), ("words",))  # "looks at the camera", "with the words", not "a camera"
_HIRAGANA = re.compile(r"[\u3041-\u309f]")
# Kanji that a particle or nothing follows, or katakana: with other hiragana after it kanji are a
# verb or an adjective.
_JAPANESE_NOUN = re.compile(
    r"[\u30a1-\u30faー]+|[A-Za-z]+"
    r"|[\u3400-\u9fff々]+(?=[のをにがはでともやへ]|から|まで|[^\u3041-\u309f\u3400-\u9fff]|$)"
)


@dataclass(frozen=True)
class _Run:
    """Words that stand together in a segment, in lower case.

    ``before`` is the word before them, "" at the segment's start."""

    start: int
    end: int
    words: tuple[str, ...]
    before: str


@dataclass(frozen=True)
class _Segment:
    """What stands between two marks: its words in lower case, and its runs.

    ``signed``: an artist's clause stands right before it."""

    words: tuple[str, ...]
    runs: tuple[_Run, ...]
    style: bool
    signed: bool


def subject_phrases(prompt: str) -> list[Span]:
    """Return the characters of the noun phrases that say what a prompt is about, in order.

    The list is empty where the rules find none."""
    phrases: list[Span] = []
    for segments in _sentences(prompt):
        if phrases and segments[0].style and _is_of_style_alone(segments[0]):
            continue  # "The mood is calm, with ...", "Painted in rich, saturated colours with ..."
        artists = False
        for segment in segments:
            artists = (artists or segment.signed) and style.may_be_artists(segment.words)
            if phrases and (artists or segment.style):
                artists |= style.are_artists(segment.words)
            else:
                kept = (run for run in segment.runs if not style.is_style(run.words, run.before))
                phrases += [(run.start, run.end) for run in kept]
                artists = False
    return phrases


def noun_phrases(prompt: str) -> list[Span]:
    """Return the characters of all noun phrases in order, those of style as well."""
    segments = (segment for sentence in _sentences(prompt) for segment in sentence)
    return [(run.start, run.end) for segment in segments for run in segment.runs]


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


def _sentences(prompt: str) -> list[list[_Segment]]:
    """Return the segments of each sentence, without what tells style wherever it stands."""
    text = style.without_style(prompt)
    language = language_of(text)

    def segment(start: int, stop: int) -> _Segment:
        every = tuple(word.lower() for word in _WORD.findall(text, start, stop))
        read = _runs(text, start, stop, language)
        runs = tuple(run for run in read if not _is_omitted(run))
        pairs = [(run.words, run.before) for run in runs]
        is_style = style.is_style_segment(every, pairs, language)
        return _Segment(every, runs, is_style, start > 1 and text[start - 2] == style.MARK)

    sentences = _pieces(text, _SENTENCE_END, 0, len(text))
    return [[segment(*at) for at in _pieces(text, _SEPARATOR, *one)] for one in sentences]


def _is_of_style_alone(segment: _Segment) -> bool:
    stated = segment.words[0] in known.MAKING or not {"is", "are"}.isdisjoint(segment.words)
    return stated or all(style.is_style(run.words, run.before) for run in segment.runs)


def _runs(text: str, start: int, stop: int, language: str) -> list[_Run]:
    """Return the words of a segment that its language's rules leave together, without what is
    negated."""
    if language == "ja":
        nouns = _JAPANESE_NOUN.finditer(text, start, stop)
        return [_Run(*noun.span(), (noun.group(),), "") for noun in nouns]
    medium = style.MEDIUM.match(text, start, stop)
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
    named = any(not known.is_adjective(other) for other in every[max(first, index - 8) : index])
    determined = opener in known.DETERMINERS
    ends = not after or after in known.FUNCTION_WORDS
    if after in known.ARTICLES and (named or not (determined or opener in known.PREPOSITIONS)):
        return True  # no noun stands before an article, but a verb does
    if before in known.MODALS or after == "than":
        return True
    if word.endswith("ing") and len(word) > 4 and word not in known.ING_NOUNS:
        leads = ends or (index == first and word in known.TRANSITIVE_ING)
        return named or (not determined and leads)
    if known.is_participle(word):
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


def _trimmed(found: list[str], spans: list[Span], before: str, german: str) -> _Run | None:
    """Return the run without adjectives behind its noun; None if numbers alone are left.

    ``german`` is the text where it is German: its nouns have capitals, and a run ends with one."""
    while len(found) > 1 and found[-1] in known.AFTER_NOUN and not known.is_adjective(found[-2]):
        found.pop()
    if german:
        capitals = [index for index in range(len(found)) if german[spans[index][0]].isupper()]
        found = found[: capitals[-1] + 1] if capitals else found
    if all(word.isdigit() for word in found):
        return None
    return _Run(spans[0][0], spans[len(found) - 1][1], tuple(found), before)


def _is_omitted(run: _Run) -> bool:
    last = run.words[-1]
    if last in known.OMITTED or (run.words in _OF_IMAGE and run.before in ("at", "the")):
        return True
    if run.before in known.BE and all(map(known.is_adjective, run.words)):
        return True  # "the sky is purple"
    led = run.before and run.before not in known.DETERMINERS
    if led and known.AFTER_NOUN.issuperset(run.words):
        return True  # "hangs open"
    return run.before in ("at", "in", "during") and last in known.TIMES_AFTER_AT
