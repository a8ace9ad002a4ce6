"""GenEval's prompt grammar: six templates over object classes, counts, colours and relations.

Facts (templates, tags, metadata form, tag weights of the training set) are those of GenEval (Ghosh
et al., arXiv 2310.11513) and of Flow-GRPO's training set (arXiv 2505.05470). A *metadata line* is
GenEval's own form: ``{"tag", "include": [{"class", "count", "color"?, "position"?}], "exclude"?,
"prompt"}``."""

import difflib

import numpy as np

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
# mouse", "tv remote", "computer keyboard"), so a detector's classes are mapped by index, never by
# name.
_COCO_NAMES = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
    clock, vase, scissors, teddy bear, hair drier, toothbrush
"""
COCO_CLASSES = tuple(" ".join(_COCO_NAMES.split()).split(", "))
# The miniature world's sixteen, which differ in outline (`star.miniature.world` draws them).
MINIATURE_CLASSES = (
    *("airplane", "apple", "bird", "car", "carrot", "cat", "chair", "clock"),
    *("couch", "cup", "horse", "person", "pizza", "truck", "umbrella", "wine glass"),
)


def with_article(noun: str) -> str:
    """``car`` -> ``a car``, ``apple`` -> ``an apple``."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """Regular plural: ``couch`` -> ``couches`` (published: ``couchs``), ``person`` ->
    ``persons``."""
    return noun + ("es" if noun.endswith(("s", "sh", "ch")) else "s")


def sample_metadata(tag: str, classes: tuple[str, ...], rng: np.random.Generator) -> dict:
    """One GenEval metadata line of the given tag, drawn uniformly.

    Args:
        tag: one of ``TAGS``.
        classes: object names to draw from, at least two.
        rng: source of randomness, advanced.

    Raises:
        ValueError: unknown tag.
    """

    def draw(values: tuple[str, ...]) -> tuple[str, str]:
        first, second = rng.choice(len(values), size=2, replace=False)
        return values[first], values[second]

    (first, second), (color, other_color) = draw(classes), draw(COLORS)
    exclude = None
    if tag == "single_object":
        include = [{"class": first, "count": 1}]
        content = with_article(first)
    elif tag == "two_object":
        include = [{"class": first, "count": 1}, {"class": second, "count": 1}]
        content = f"{with_article(first)} and {with_article(second)}"
    elif tag == "counting":
        count = int(rng.integers(2, 5))
        include = [{"class": first, "count": count}]
        exclude = [{"class": first, "count": count + 1}]
        content = f"{COUNT_WORDS[count]} {plural(first)}"
    elif tag == "colors":
        include = [{"class": first, "count": 1, "color": color}]
        content = with_article(f"{color} {first}")
    elif tag == "position":
        relation = RELATIONS[rng.integers(len(RELATIONS))]
        include = [
            {"class": second, "count": 1},
            {"class": first, "count": 1, "position": [relation, 0]},
        ]
        content = f"{with_article(first)} {relation} {with_article(second)}"
    elif tag == "color_attr":
        include = [
            {"class": first, "count": 1, "color": color},
            {"class": second, "count": 1, "color": other_color},
        ]
        content = (
            f"{with_article(f'{color} {first}')} and {with_article(f'{other_color} {second}')}"
        )
    else:
        raise ValueError(f"unknown GenEval tag {tag!r}; known: {', '.join(TAGS)}")
    line = {"tag": tag, "include": include, "prompt": f"a photo of {content}"}
    if exclude:
        line["exclude"] = exclude
    return line


def grammar_size(tag: str, classes: int) -> int:
    """How many different prompts `sample_metadata` can draw for a tag with so many classes."""
    pairs, colors = classes * (classes - 1), len(COLORS)
    return {
        "single_object": classes,
        "two_object": pairs,
        "counting": classes * len(COUNT_WORDS),
        "colors": classes * colors,
        "position": pairs * len(RELATIONS),
        "color_attr": pairs * colors * (colors - 1),
    }[tag]


def check_metadata(line: dict, classes: tuple[str, ...], where: str) -> None:
    """Check one line of a file in GenEval's metadata form.

    Raises:
        StarError: a missing or unknown key, a wrong tag, class, colour, count or relation; the
            message begins with ``where`` (file and line) and says what is allowed.
    """
    _check_keys(line, {"tag", "include", "prompt"}, {"exclude"}, where)
    if line["tag"] not in TAGS:
        raise StarError(f"{where}: tag {line['tag']!r} is not one of {', '.join(TAGS)}")
    if not isinstance(line["prompt"], str) or not any(map(str.isalnum, line["prompt"])):
        raise StarError(f"{where}: 'prompt' must be a text with at least one word")
    check_clauses(line, classes, where)


def check_clauses(line: dict, classes: tuple[str, ...] | None, where: str) -> None:
    """Check the clauses of ``include`` and ``exclude``, as `check_metadata` does; without
    ``classes`` any may be named.

    Raises:
        StarError: begins with ``where``.
    """
    for key in ("include", "exclude"):
        clauses = line.get(key, [])
        if not isinstance(clauses, list) or (key == "include" and not clauses):
            raise StarError(
                f"{where}: {key!r} must be a list of clauses, 'include' with at least one"
            )
        for index, clause in enumerate(clauses):
            _check_clause(clause, index, classes, f"{where}: {key}[{index}]")


def is_index(value: object) -> bool:
    """Whether a JSON value is an integer of at least zero (``true`` is not one, though Python's
    `bool` is an int)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_clause(clause: object, index: int, classes: tuple[str, ...] | None, where: str) -> None:
    if not isinstance(clause, dict):
        raise StarError(f"{where} must be an object with class and count")
    _check_keys(clause, {"class", "count"}, {"color", "position"}, where)
    name, count = clause["class"], clause["count"]
    if not isinstance(name, str) or not name.strip():
        raise StarError(f"{where}: class {name!r} must be the name of an object")
    if classes is not None and name not in classes:
        near = difflib.get_close_matches(name, classes, n=1, cutoff=0.0)[0]
        raise StarError(
            f"{where}: unknown class {name!r}; the nearest of the {len(classes)} known is {near!r}"
        )
    if not (is_index(count) and count > 0):
        raise StarError(f"{where}: count {count!r} must be a whole number of at least 1")
    if "color" in clause and clause["color"] not in COLORS:
        raise StarError(f"{where}: color {clause['color']!r} is not one of {', '.join(COLORS)}")
    if "position" in clause:
        position = clause["position"]
        if not (isinstance(position, list) and len(position) == 2 and position[0] in RELATIONS):
            raise StarError(
                f"{where}: position {position!r} must be [relation, clause], relation: {', '.join(RELATIONS)}"
            )
        if not (is_index(position[1]) and position[1] < index):
            raise StarError(
                f"{where}: position refers to clause {position[1]!r}, which must be an earlier one"
            )


def _check_keys(value: dict, required: set[str], optional: set[str], where: str) -> None:
    for key in sorted(required - set(value)):
        raise StarError(f"{where}: key {key!r} is missing")
    for key in sorted(set(value) - required - optional):
        raise StarError(
            f"{where}: unknown key {key!r}; known: {', '.join(sorted(required | optional))}"
        )
