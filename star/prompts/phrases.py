"""Subject noun phrases of free prompts, by rules and word classes alone: no tagger, nothing to
download.

A prompt is cut at punctuation into segments and these at function words, verbs and participles into
runs of words. What remains of a run is a phrase, unless its last word names a place, a time or a
style ("8k, soft lighting, by ..."). The rules are for English; of other languages only the function
words and a few style words are known. In doubt a word is kept."""

import re
from dataclasses import dataclass

from star.prompts import vocabulary
from star.prompts.vocabulary import FUNCTION_WORDS

Span = tuple[int, int]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<!\b[^\W\d_])[.!?](?=\s|$)|[。！？\n]")
_SEPARATOR = re.compile(
    r"""[,;:|.!?()\[\]{}<>"“”„«»「」『』、，。；：！？（）【】\n]+|\s[-–—/]+\s|—"""
)
_LORA = re.compile(r"<[^<>]{1,200}>")
_JOINT = re.compile(r"\s*|['’]\s+")  # between two words of one phrase
_HIRAGANA = re.compile(r"[\u3041-\u309f]")
# Kanji that a particle or nothing follows, or katakana: with other hiragana after it kanji are a
# verb or an adjective.
_JAPANESE_NOUN = re.compile(
    r"[\u30a1-\u30faー]+|[\u3400-\u9fff々]+(?=[のをにがはでともやへ]|から|まで|[^\u3041-\u309f\u3400-\u9fff]|$)|[A-Za-z]+"
)

_STYLE = re.compile(
    r"""^(?:trending\s+on.*|\d+(?:k|mm|s|p|x\d+)|f/\d.*|kodak\b.*|unreal\s+engine.*|octane.*|depth\s+of\s+field|cinestill.*
    |(?:.*\s)?(?:soft|warm|natural|dramatic|golden|cold|cool|harsh|rim|studio|ambient|diffused?|moody|volumetric|low
      |cinematic|morning|evening|hard|back|side|gentle|long|deep)\s+(?:light|shadows?|blacks?|hour)
    |.*\b(?:black\s+and\s+white|style\s+of)\b.*|shallow\s+depth|rule\s+of\s+thirds|film\s+noir|national\s+geographic
    |art\s+nouveau|art\s+deco)$""",
    re.IGNORECASE | re.VERBOSE,
)
# "by greg rutkowski" and all that follows it in its sentence, but not "by the sea", "side by side"
# or "tied by ropes".
_ARTIST = re.compile(
    r"\b(?:in\s+the\s+style\s+of|inspired\s+by|by\s+"
    r"(?!(?:the|an?|my|his|her|its|their|our|your|side|night|day|moonlight|candlelight|foot|two|\w+ing)\b)\w)",
    re.IGNORECASE,
)
# "an oil painting of" at a segment's start is how, not what.
_MEDIUM = re.compile(
    r"\s*(?:(?!(?:\w+ing|[a-z]*[a-rtv-z]s|with|in|on|and|of|beside|near)\s)[\w'-]+\s+){0,5}?"
    r"(?:photo(?:graph)?|picture|image|painting|portrait|drawing|illustration|sketch|render(?:ing)?|close[\s-]?up|shot|view"
    r"|print|still|design|artwork|art|depiction|scene|watercolou?r|engraving|rendition|snapshot)s?"
    r"\s+(?:of|showing|depicting)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Run:
    """Words that stand together in a segment, in lower case, and the word before them ("" at the
    segment's start)."""

    start: int
    end: int
    words: tuple[str, ...]
    before: str


def subject_phrases(prompt: str) -> list[Span]:
    """Character ranges of the noun phrases that say what a prompt is about, in order; empty if the
    rules find none."""
    text = _LORA.sub(lambda match: "|" * len(match.group()), prompt)
    language = language_of(text)
    phrases: list[Span] = []
    for start, stop in _pieces(text, _SENTENCE_END, 0, len(text)):
        segments = _pieces(text, _SEPARATOR, start, _artist(text, start, stop))
        read = [_runs(text, *segment, language) for segment in segments]
        style = [
            _is_style_segment(text[a:b], runs, language)
            for (a, b), runs in zip(segments, read, strict=True)
        ]
        if (
            phrases
            and style
            and style[0]
            and _is_of_style_alone(text[slice(*segments[0])], read[0])
        ):
            continue  # "The mood is calm, with ...", "Painted in rich, saturated colours with ..."
        for index, runs in enumerate(read):
            medium = bool(runs) and runs[0].before == "" and runs[0].words[-1] in vocabulary.MEDIA
            if phrases and (style[index] or (medium and all(style[index + 1 : index + 2]))):
                continue
            phrases += [
                (run.start, run.end) for run in runs if not _is_style(run) and not _is_omitted(run)
            ]
    return phrases


def words(prompt: str) -> list[Span]:
    """Character ranges of all words (letters and digits of any script; inner hyphens and
    apostrophes join)."""
    return [match.span() for match in _WORD.finditer(prompt)]


def content_words(prompt: str) -> list[Span]:
    """The words that are not function words; all words if there is no other."""
    every = words(prompt)
    return [(a, b) for a, b in every if prompt[a:b].lower() not in FUNCTION_WORDS] or every


def _pieces(text: str, separator: re.Pattern[str], start: int, stop: int) -> list[Span]:
    """What lies between the separators and has a word."""
    cuts = [match.span() for match in separator.finditer(text, start, stop)]
    starts = [start, *(end for _, end in cuts)]
    ends = [*(begin for begin, _ in cuts), stop]
    return [(a, b) for a, b in zip(starts, ends, strict=True) if _WORD.search(text, a, b)]


def language_of(text: str) -> str:
    """Two letters; English unless another has more function words."""
    if _HIRAGANA.search(text):
        return "ja"
    every = [word.lower() for word in re.findall(r"[^\W\d_]+", text)]
    telling = [word for word in every if word not in vocabulary.HOMOGRAPHS]
    counts = {
        name: sum(word in known for word in telling) for name, known in vocabulary.LANGUAGES.items()
    }
    best = max(
        counts,
        key=lambda name: (counts[name], sum(word in vocabulary.LANGUAGES[name] for word in every)),
    )
    foreign = counts[best] > sum(word in FUNCTION_WORDS for word in every)
    return best if foreign and (counts[best] > 1 or not text.isascii()) else "en"


def _artist(text: str, start: int, stop: int) -> int:
    """Where the names of artists begin that end a sentence; its end if there are none."""
    for match in _ARTIST.finditer(text, start, stop):
        before = _WORD.findall(text[max(match.start() - 40, start) : match.start()])
        last = before[-1].lower() if before else ""
        done = _is_participle(last) or last in FUNCTION_WORDS  # "tied together by ropes"
        if (
            match.group()[:2].lower() != "by"
            or not done
            or (last in vocabulary.MAKING and match.group()[-1].isupper())
        ):
            return match.start()
    return stop


def _runs(text: str, start: int, stop: int, language: str) -> list[_Run]:
    """Maximal runs of words of a segment that the rules of its language leave together, without
    what is negated."""
    medium = _MEDIUM.match(text, start, stop)
    spans = [
        match.span() for match in _WORD.finditer(text, medium.end() if medium else start, stop)
    ]
    if language == "ja":
        nouns = [match.span() for match in _JAPANESE_NOUN.finditer(text, start, stop)]
        return [_Run(a, b, (text[a:b],), "") for a, b in nouns]
    every = [text[a:b].lower() for a, b in spans]
    runs: list[_Run] = []
    first = None  # index of the open run's first word
    joined = [
        bool(_JOINT.fullmatch(text, a, b)) for (_, a), (b, _) in zip(spans, spans[1:], strict=False)
    ]
    excluding = written = False
    for index in range(len(every) + 1):
        word = every[index] if index < len(every) else ""
        apart = 0 < index < len(every) and not joined[index - 1]
        began = index if first is None else first
        cut = not word or (
            word in vocabulary.BEHIND_WRITING if written else _cuts(every, index, began, language)
        )
        if first is not None and (cut or apart):
            before = every[first - 1] if first and joined[first - 1] else ""
            run = _trimmed(
                every, spans, slice(first, index), before, text if language == "de" else ""
            )
            runs += [run] if run and not excluding else []
            excluding = excluding and word in ("and", "or", "nor", "of")
            first = None
        if not cut:
            first = index if first is None else first
        else:
            likeness = word == "like" and index > 0 and every[index - 1] in vocabulary.LIKENESS
            excluding |= word in vocabulary.EXCLUDING and not likeness
            written = word in ("says", "saying") or (
                word == "reads" and every[index - 1 : index] == ["that"]
            )
    return runs


def _cuts(every: list[str], index: int, first: int, language: str) -> bool:
    """Whether a word ends the run that began at ``first`` (its own index if none is open) and is no
    part of another."""
    word = every[index]
    before = every[index - 1] if index else ""
    after = every[index + 1] if index + 1 < len(every) else ""
    opener = every[first - 1] if first else ""
    if language != "en":
        gerund = (
            language in ("es", "it", "pt")
            and index > 0
            and word.endswith(("ando", "endo", "iendo"))
        )
        return word in vocabulary.LANGUAGES[language] or gerund
    if word == "and" and first < index and {before, after} <= vocabulary.COLORS:
        return False
    if word in FUNCTION_WORDS or (word.endswith("ly") and word not in vocabulary.ADVERBS_NOT):
        return True
    named = any(not _is_adjective(other) for other in every[max(first, index - 8) : index])
    determined = opener in vocabulary.DETERMINERS
    ends = not after or after in FUNCTION_WORDS
    if after in vocabulary.ARTICLES and (
        named or not (determined or opener in vocabulary.PREPOSITIONS)
    ):
        return True  # no noun stands before an article, but a verb does
    if before in vocabulary.MODALS or after == "than":
        return True
    if word.endswith("ing") and len(word) > 4 and word not in vocabulary.ING_NOUNS:
        return named or (
            not determined and (ends or (index == first and word in vocabulary.TRANSITIVE_ING))
        )
    if _is_participle(word):
        if before in vocabulary.BE:
            return True
        return ends and (named or not determined) and after not in ("and", "or")
    plural = (
        first < index
        and (before.endswith("s") or before in vocabulary.PLURALS)
        and not before.endswith("ss")
    )
    if word in vocabulary.THIRD_PERSON or (
        word in vocabulary.VERBS and (plural or before in ("to", "and", "they"))
    ):
        return not determined or named
    if not after or after in ("and", "or", "of"):
        return False  # of a word that is a noun as well, this is one
    if word in vocabulary.THIRD_PERSON_NOUNS and (ends or after in vocabulary.ADJECTIVES):
        several = every[first] in vocabulary.NUMBERS
        return not several and (
            (named and not plural) or (index == first and opener in vocabulary.SUBJECTS)
        )
    return word in vocabulary.VERB_NOUNS and plural and named and ends


def _is_adjective(word: str) -> bool:
    noun = word.endswith("fish") or word in vocabulary.ADJECTIVES_NOT
    return (
        word in vocabulary.ADJECTIVES
        or word.isdigit()
        or (word.endswith(vocabulary.ADJECTIVE_ENDINGS) and not noun)
    )


def _is_participle(word: str) -> bool:
    regular = (
        word.endswith("ed")
        and not word.endswith("eed")
        and len(word) > 4
        and word not in vocabulary.ED_NOUNS
    )
    return regular or word in vocabulary.PARTICIPLES


def _trimmed(
    every: list[str], spans: list[Span], part: slice, before: str, german: str
) -> _Run | None:
    """The run without adjectives behind its noun; in German, whose nouns have capitals, without all
    behind the last."""
    found, places = every[part], spans[part]
    while len(found) > 1 and found[-1] in vocabulary.AFTER_NOUN and not _is_adjective(found[-2]):
        found.pop()
    if german:
        capitals = [index for index in range(len(found)) if german[places[index][0]].isupper()]
        found = found[: capitals[-1] + 1] if capitals else found
    if all(word.isdigit() for word in found):
        return None
    return _Run(places[0][0], places[len(found) - 1][1], tuple(found), before)


def _is_omitted(run: _Run) -> bool:
    if run.before in vocabulary.BE and all(map(_is_adjective, run.words)):
        return True  # "the sky is purple"
    if run.before not in {"", *vocabulary.DETERMINERS} and vocabulary.AFTER_NOUN.issuperset(
        run.words
    ):
        return True  # "hangs open"
    if run.words == ("camera",) and run.before in ("at", "the"):
        return True  # it takes the picture
    at = run.before in ("at", "in", "during") and run.words[-1] in vocabulary.TIMES_AFTER_AT
    return run.words[-1] in vocabulary.OMITTED or at


def _is_style(run: _Run) -> bool:
    if run.words[-1] in vocabulary.STYLE_HEADS or _STYLE.match(" ".join(run.words)):
        return True
    if not run.before and not vocabulary.STYLE_NAMES.isdisjoint(run.words):
        return True
    medium = run.words[-1] in vocabulary.MEDIA
    if medium and not vocabulary.MEDIUM_MODIFIERS.isdisjoint(run.words[:-1]):
        return True
    rest = run.words[:-1] if medium and len(run.words) > 1 else run.words
    return run.before in ("", "and") and all(
        word in vocabulary.STYLE_WORDS or word.isdigit() for word in rest
    )


def _is_style_segment(segment: str, runs: list[_Run], language: str) -> bool:
    """Whether a segment begins with style and goes on without a verb."""
    every = segment.lower().split()
    foreign = (word for run in runs for word in run.words if language != "en" or not word.isascii())
    if any(word.startswith(vocabulary.STYLE_STEMS) for word in foreign):
        return True
    made = bool(every) and (
        every[0] in vocabulary.MAKING or (every[0] in vocabulary.MEDIA and every[1:2] == ["on"])
    )
    return made or (bool(runs) and _is_style(runs[0]) and vocabulary.THIRD_PERSON.isdisjoint(every))


def _is_of_style_alone(segment: str, runs: list[_Run]) -> bool:
    every = segment.lower().split()
    return (
        every[0] in vocabulary.MAKING
        or not {"is", "are"}.isdisjoint(every)
        or all(map(_is_style, runs))
    )
