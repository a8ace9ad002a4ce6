"""Word classes that the rules for prompts need, read from vocabulary.yaml, which explains them."""

import re
from pathlib import Path
from typing import Any

import yaml

_LISTS: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
)


def _words(*names: str) -> frozenset[str]:
    """Return the words of these lists."""
    return frozenset(word for name in names for word in _LISTS[name].split())


def _third_person(verb: str) -> str:
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"


DETERMINERS = _words("determiners")
# What follows a finite verb or a preposition, never a noun.
ARTICLES = DETERMINERS - {"this", "these", "those", "each", "every"}
PREPOSITIONS = _words("prepositions")
BE = _words("be")
MODALS = _words("modals")
FUNCTION_WORDS = DETERMINERS | PREPOSITIONS | MODALS | _words("other_function_words")
EXCLUDING = _words("excluding")
LIKENESS = _words("likeness")

VERB_NOUNS = _words("verb_nouns")
VERBS = _words("verbs") - VERB_NOUNS
THIRD_PERSON = frozenset(map(_third_person, VERBS))
THIRD_PERSON_NOUNS = frozenset(map(_third_person, VERB_NOUNS))
FINITE = THIRD_PERSON | THIRD_PERSON_NOUNS
PARTICIPLES = _words("participles")
ED_NOUNS = _words("ed_nouns")
ING_NOUNS = _words("ing_nouns")
TRANSITIVE_ING = _words("transitive_ing")
BEHIND_WRITING = _words("behind_writing")
MAKING = _words("making")
SUBJECTS = _words("subjects")

PLURALS = _words("plurals")
COLORS = _words("colors")
NUMBERS = _words("numbers")
ADJECTIVES = COLORS | _words("adjectives")
ADJECTIVE_ENDINGS = tuple(_LISTS["adjective_endings"].split())
AFTER_NOUN = _words("after_noun")
NOT_ADJECTIVES = _words("not_adjectives")
NOT_ADVERBS = _words("not_adverbs")

PLACES = _words("places")
TIMES_AFTER_AT = _words("times_after_at")
OMITTED = PLACES | _words("times", "invisible", "meta")

STYLE_HEADS = _words("style_heads")
MEDIA = _words("media")
MEDIUM_MODIFIERS = _words("medium_modifiers")
STYLE_NAMES = _words("style_names")
STYLE_WORDS = _words("style_words")
STYLE = STYLE_WORDS | STYLE_NAMES | MEDIA | MEDIUM_MODIFIERS
STYLE_PHRASES = "|".join(_LISTS["style_phrases"])  # a regular expression, as is the next
MEDIUM_OF = "|".join(_LISTS["medium_of"].split())
ARTISTS = frozenset(_LISTS["artists"].split("; "))
STYLE_PATTERN = re.compile("|".join(_LISTS["style_patterns"]), re.IGNORECASE)  # of a whole phrase

CARRIERS = _words("carriers")
WRITING = _words("writing")
COLLECTIVES = _words("collectives")
WHERE = _words("where")
PUT_ON = _words("put_on")

HOMOGRAPHS = _words("homographs")
LANGUAGES = {name: frozenset(text.split()) for name, text in _LISTS["languages"].items()}
STYLE_STEMS = tuple(_LISTS["style_stems"].split())


def is_adjective(word: str) -> bool:
    """Tell whether a word is an adjective or a number."""
    if word in ADJECTIVES or word.isdigit():
        return True
    noun = word.endswith("fish") or word in NOT_ADJECTIVES
    return word.endswith(ADJECTIVE_ENDINGS) and not noun


def is_participle(word: str) -> bool:
    """Tell whether a word is a past participle."""
    regular = word.endswith("ed") and not word.endswith("eed") and len(word) > 4
    return (regular and word not in ED_NOUNS) or word in PARTICIPLES
