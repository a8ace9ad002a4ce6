"""Subject noun phrases of free English prompts, by rules alone: no tagger, nothing to download.

A prompt is cut at punctuation into segments. Style ("8k, trending on artstation, by ...") is left out, what remains is
cut at function words and participles, and each run of words between two cuts is a phrase. In doubt a word is kept.
"""

import re

Span = tuple[int, int]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SEPARATOR = re.compile(r"""[,;:|.!?()\[\]{}<>"“”\n]+|\s[-–—]+\s""")

_FUNCTION_TEXT = """
a an the this that these those some any each every all both no not very so too just only more most much many
and or but nor if then than as while when where which who whom whose what how why
of in on at by to from with without into onto over under above below between behind beside besides near next inside
outside through across along around about against among up down off out for like per via
i me my mine we us our you your he him his she her it its they them their there here
is are was were be been being am do does did has have had having can could will would should may might must
wearing holding riding eating sitting standing walking playing looking using making drinking carrying driving reading
saying says said reads wears holds rides eats sits stands walks plays looks made
"""
FUNCTION_WORDS = frozenset(_FUNCTION_TEXT.split())
# Nouns that look like participles.
_ING_TEXT = """
building ceiling clothing evening lightning morning painting wedding viking wing string spring swing thing earring
drawing dressing pudding duckling starling
"""
_ING_NOUNS = frozenset(_ING_TEXT.split())
_STYLE = re.compile(
    r"""\b(?:trending(?:\s+on(?:\s+\w+)?)?|art\s?station|deviant\s?art|pixiv|cg\s?society|\d+k|u?hdr?|\d+\s?mm|f/\d\S*
    |(?:(?:highly|ultra|super|very|extremely|intricate(?:ly)?|insanely|hyper)[\s-]+){0,3}(?:detail(?:ed|s)?)
    |intricate|unreal\s+engine(?:\s+\d+)?|octane(?:\s+render)?|(?:3d\s+)?render(?:ed|ing)?|ray\s?tracing|cinematic
    |masterpiece|(?:best|high)\s+quality|award[\s-]winning|(?:photo|hyper|ultra)[\s-]?realis(?:m|tic)|realistic
    |sharp\s+focus|depth\s+of\s+field|bokeh|concept\s+art|digital\s+(?:art|painting)|matte\s+painting|illustration
    |(?:\w+\s+)?lighting|volumetric|aesthetic|wallpaper|4\s?k|in\s+the\s+style\s+of\b.*|\w+\s+style)\b""",
    re.IGNORECASE | re.VERBOSE,
)
# "by greg rutkowski" and all that follows it, but not "by the sea" or "side by side".
_ARTIST = re.compile(
    r"\bby\s+(?!(?:the|an?|my|his|her|its|their|our|your|side|night|day|moonlight|candlelight|foot|two|\w+ing)\b)\w",
    re.IGNORECASE,
)
# "an oil painting of" at a segment's start is how, not what.
_MEDIUM = re.compile(
    r"\s*(?:(?!(?:\w+ing|with|in|on|and|of|has|holds|beside|near)\s)[\w'-]+\s+){0,4}?"
    r"(?:photo(?:graph)?|picture|image|painting|portrait|drawing|illustration|sketch|render(?:ing)?|close-?up|shot)s?"
    r"\s+of\b",
    re.IGNORECASE,
)


def subject_phrases(prompt: str) -> list[Span]:
    """Character ranges of the noun phrases that say what a prompt is about, in order; empty if the rules find none."""
    artist = _ARTIST.search(prompt)
    end = artist.start() if artist else len(prompt)
    phrases: list[Span] = []
    first = True
    for start, stop in _segments(prompt[:end]):
        segment = prompt[start:stop]
        styles = [match.span() for match in _STYLE.finditer(segment)]
        if styles and not first:
            continue
        first = False
        medium = _MEDIUM.match(segment)
        masked = styles + ([medium.span()] if medium else [])
        phrases += [(start + a, start + b) for a, b in _runs(segment, masked)]
    return phrases


def words(prompt: str) -> list[Span]:
    """Character ranges of all words (letters and digits of any script; inner hyphens and apostrophes join)."""
    return [match.span() for match in _WORD.finditer(prompt)]


def content_words(prompt: str) -> list[Span]:
    """The words that are not function words; all words if there is no other."""
    every = words(prompt)
    return [(a, b) for a, b in every if prompt[a:b].lower() not in FUNCTION_WORDS] or every


def _segments(prompt: str) -> list[Span]:
    cuts = [match.span() for match in _SEPARATOR.finditer(prompt)]
    starts = [0, *(end for _, end in cuts)]
    ends = [*(start for start, _ in cuts), len(prompt)]
    return [(a, b) for a, b in zip(starts, ends, strict=True) if _WORD.search(prompt, a, b)]


def _runs(segment: str, masked: list[Span]) -> list[Span]:
    """Maximal runs of words of a segment that are neither masked nor function words nor participles after a noun."""
    runs: list[Span] = []
    open_run = False
    for start, end in words(segment):
        word = segment[start:end].lower()
        style = any(start < b and a < end for a, b in masked)
        participle = open_run and word.endswith("ing") and len(word) > 4 and word not in _ING_NOUNS
        if style or participle or word in FUNCTION_WORDS:
            open_run = False
        elif open_run:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
            open_run = True
    return [(a, b) for a, b in runs if not segment[a:b].isdigit()]
