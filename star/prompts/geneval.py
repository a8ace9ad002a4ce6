"""GenEval's prompt grammar: six forms over object classes, counts, colours and relations.

Forms, tags and metadata are those of GenEval (Ghosh et al., arXiv 2310.11513), the tag weights
those of Flow-GRPO's training set (arXiv 2505.05470). A *metadata line* is GenEval's own:
``{"tag", "include": [{"class", "count", "color"?, "position"?}], "exclude"?, "prompt"}``."""

import difflib
import re

import numpy as np

from star.prompts.words import read_list
from star.system.errors import StarError

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
# Flow-GRPO's mixture; single_object is left to the test set, as in the published training set.
TRAIN_TAG_WEIGHTS = {
    "position": 0.7,
    "counting": 0.5,
    "color_attr": 0.3,
    "colors": 0.1,
    "two_object": 0.1,
}
# GenEval's names of COCO's 80 classes, in COCO's order. Some differ from COCO's own ("computer
# mouse", "tv remote", "computer keyboard"): map a detector's classes by index, never by name.
COCO_CLASSES = read_list("coco_classes.txt")
# The miniature world's sixteen, which differ in outline (`star.miniature.world` draws them).
MINIATURE_CLASSES = (
    *("airplane", "apple", "bird", "car", "carrot", "cat", "chair", "clock"),
    *("couch", "cup", "horse", "person", "pizza", "truck", "umbrella", "wine glass"),
)


def with_article(noun: str) -> str:
    """Return ``a car`` for ``car``, ``an apple`` for ``apple``."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """Return the regular plural: ``couches`` (published: ``couchs``), ``persons``."""
    return noun + ("es" if noun.endswith(("s", "sh", "ch")) else "s")


def caption(tag: str, include: list[dict]) -> str:
    """Return the prompt that GenEval's form of a tag writes for these clauses."""
    nouns = [" ".join(filter(None, (clause.get("color"), clause["class"]))) for clause in include]
    if tag == "counting":
        return f"a photo of {COUNT_WORDS[include[0]['count']]} {plural(nouns[0])}"
    things = [with_article(noun) for noun in nouns]
    if tag == "position":
        return f"a photo of {things[1]} {include[1]['position'][0]} {things[0]}"
    return f"a photo of {' and '.join(things)}"


def clauses_in(prompt: str) -> list[dict]:
    """Return the ``include`` clauses of a prompt that `caption` could write; none of another one.

    Any of COCO's classes may stand in it, with or without a colour.
    """
    counts = {word: count for count, word in COUNT_WORDS.items()}
    any_of = "|".join
    thing = rf"(an?|{any_of(counts)}) (?:({any_of(COLORS)}) )?({any_of(COCO_CLASSES)})(?:e?s)?"
    joined = rf"{thing}(?: (and|{any_of(RELATIONS)}) {thing})?"
    if not (match := re.fullmatch(rf"an? photo of {joined}\.?", prompt.lower())):
        return []

    def clause(count: str, color: str | None, noun: str) -> dict:
        return {"class": noun, "count": counts.get(count, 1)} | ({"color": color} if color else {})

    first, relation = clause(*match.groups()[:3]), match[4]
    if relation is None:
        return [first]
    second = clause(*match.groups()[4:])
    return [first, second] if relation == "and" else [second, first | {"position": [relation, 0]}]


def sample_metadata(tag: str, classes: tuple[str, ...], rng: np.random.Generator) -> dict:
    """Draw one GenEval metadata line of a tag uniformly.

    Args:
        tag: one of ``TAGS``.
        classes: object names to draw from, at least two.
        rng: source of randomness, advanced.
    """

    def two_of(values: tuple[str, ...]) -> tuple[str, str]:
        first, second = rng.choice(len(values), size=2, replace=False)
        return values[first], values[second]

    (first, second), (color, other_color) = two_of(classes), two_of(COLORS)
    thing: dict = {"class": first, "count": 1}
    other: dict = {"class": second, "count": 1}
    exclude = {}
    match tag:
        case "single_object":
            include = [thing]
        case "two_object":
            include = [thing, other]
        case "counting":
            count = int(rng.integers(2, 5))
            include = [thing | {"count": count}]
            exclude = {"exclude": [thing | {"count": count + 1}]}
        case "colors":
            include = [thing | {"color": color}]
        case "position":
            relation = RELATIONS[rng.integers(len(RELATIONS))]
            include = [other, thing | {"position": [relation, 0]}]
        case "color_attr":
            include = [thing | {"color": color}, other | {"color": other_color}]
    return {"tag": tag, "include": include, "prompt": caption(tag, include), **exclude}


def grammar_size(tag: str, classes: int) -> int:
    """Return how many different prompts `sample_metadata` can draw for a tag and so many
    classes."""
    pairs, colors = classes * (classes - 1), len(COLORS)
    return {
        "single_object": classes,
        "two_object": pairs,
        "counting": classes * len(COUNT_WORDS),
        "colors": classes * colors,
        "position": pairs * len(RELATIONS),
        "color_attr": pairs * colors * (colors - 1),
    }[tag]


def check_metadata(line: dict, classes: tuple[str, ...], where: str) -> dict:
    """Refuse a line of a file that is not in GenEval's metadata form.

    Returns:
        the line without keys that are no part of GenEval's rules.

    Raises:
        StarError: a missing or misspelt key, a wrong tag, class, colour, count or relation; the
            message begins with ``where`` (file and line) and says what is allowed.
    """
    required, optional = {"tag", "include", "prompt"}, {"exclude"}
    others = {key for key in line if not difflib.get_close_matches(key.lower(), optional)}
    line = {key: value for key, value in line.items() if key in required or key not in others}
    check_keys(line, required, optional, where)
    if line["tag"] not in TAGS:
        raise StarError(f"{where}: tag {line['tag']!r} is not one of {', '.join(TAGS)}")
    if not isinstance(line["prompt"], str) or not any(map(str.isalnum, line["prompt"])):
        raise StarError(f"{where}: 'prompt' must be a text with at least one word")
    check_clauses(line, classes, where)
    return line


def check_clauses(line: dict, classes: tuple[str, ...] | None, where: str) -> None:
    """Refuse wrong clauses of ``include`` and ``exclude``; without ``classes`` any may be named.

    Raises:
        StarError: as `check_metadata`.
    """
    for key in ("include", "exclude"):
        clauses = line.get(key, [])
        if not isinstance(clauses, list) or (key == "include" and not clauses):
            least = ", with at least one" if key == "include" else ""
            raise StarError(f"{where}: {key!r} must be a list of clauses{least}")
        for index, clause in enumerate(clauses):
            _check_clause(clause, index, classes, f"{where}: {key}[{index}]")


def is_index(value: object) -> bool:
    """Tell whether a JSON value is an integer of at least zero, which ``true`` is not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_clause(clause: object, index: int, classes: tuple[str, ...] | None, where: str) -> None:
    if not isinstance(clause, dict):
        raise StarError(f"{where} must be an object with class and count")
    check_keys(clause, {"class", "count"}, {"color", "position"}, where)
    name, count = clause["class"], clause["count"]
    if not isinstance(name, str) or not name.strip():
        raise StarError(f"{where}: class {name!r} must be the name of an object")
    if classes is not None and name not in classes:
        # COCO's own "mouse" is GenEval's "computer mouse".
        longer = [known for known in classes if name.lower() in known.split()]
        near = (longer or difflib.get_close_matches(name, classes, n=1, cutoff=0.0))[0]
        nearest = f"the nearest of the {len(classes)} known is {near!r}"
        raise StarError(f"{where}: unknown class {name!r}; {nearest}")
    if not (is_index(count) and count > 0):
        raise StarError(f"{where}: count {count!r} must be a whole number of at least 1")
    if "color" in clause and clause["color"] not in COLORS:
        raise StarError(f"{where}: color {clause['color']!r} is not one of {', '.join(COLORS)}")
    if "position" in clause:
        match clause["position"]:
            case [str(relation), earlier] if relation in RELATIONS:
                if not (is_index(earlier) and earlier < index):
                    refers = f"position refers to clause {earlier!r}"
                    raise StarError(f"{where}: {refers}, which must be an earlier one")
            case position:
                form = f"[relation, clause], relation: {', '.join(RELATIONS)}"
                raise StarError(f"{where}: position {position!r} must be {form}")


def check_keys(value: dict, required: set[str], optional: set[str], where: str) -> None:
    """Refuse a JSON object without a required key, or with an unknown one."""
    for key in sorted(required - set(value)):
        raise StarError(f"{where}: key {key!r} is missing")
    for key in sorted(set(value) - required - optional):
        known = ", ".join(sorted(required | optional))
        raise StarError(f"{where}: unknown key {key!r}; known: {known}")
