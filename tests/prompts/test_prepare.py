"""Prompt sets: GenEval's metadata form, no test prompt in training, files in the published formats,
errors by line."""

import dataclasses
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star.config.params import Params, load_params
from star.miniature import world
from star.prompts.geneval import (
    COCO_CLASSES,
    TAGS,
    TRAIN_TAG_WEIGHTS,
    check_metadata,
    grammar_size,
    plural,
    sample_metadata,
    with_article,
)
from star.prompts.ocr import MINIATURE_TEMPLATES, TEMPLATES, quoted_span
from star.prompts.prepare import prepare
from star.prompts.words import WORDS
from star.system.errors import StarError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def defaults() -> Params:
    return load_params(ROOT / "params.yaml")


def changed(
    params: Params, task: str, world_name: str = "miniature", seed: int = 0, **values
) -> Params:
    """The parameters with another prompt set for one task."""
    sets = dataclasses.replace(getattr(params.prompts, task), **values)
    prompts = dataclasses.replace(params.prompts, world=world_name, **{task: sets})
    return dataclasses.replace(params, seed=seed, prompts=prompts)


def test_the_words_and_classes_are_what_they_should_be():
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == 80
    assert set(world.CLASSES) <= set(COCO_CLASSES)
    assert COCO_CLASSES[0] == "person"
    assert COCO_CLASSES[62:67] == (
        "tv",
        "laptop",
        "computer mouse",
        "tv remote",
        "computer keyboard",
    )  # COCO's order
    assert len(set(WORDS)) == len(WORDS) >= 260
    assert all(re.fullmatch("[A-Z]{2,5}", word) for word in WORDS)


def test_grammar_size_counts_the_different_prompts():
    rng = np.random.default_rng(0)
    for tag in TAGS:
        drawn = {
            sample_metadata(tag, ("cat", "horse", "apple"), rng)["prompt"] for _ in range(6000)
        }
        assert len(drawn) == grammar_size(tag, 3), tag


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(TAGS), st.integers(0, 2**32))
def test_sampled_lines_pass_the_check_of_files(tag, seed):
    line = sample_metadata(tag, COCO_CLASSES, np.random.default_rng(seed))
    check_metadata(json.loads(json.dumps(line)), COCO_CLASSES, "line")


@pytest.mark.parametrize("task", ["geneval", "ocr", "preference"])
@pytest.mark.parametrize("world_name", ["miniature", "coco"])
def test_sets_are_seeded_unique_and_disjoint(defaults, task, world_name):
    params = changed(defaults, task, world_name)
    train, test = prepare(task, params)
    sizes = getattr(params.prompts, task)
    assert (len(train), len(test)) == (sizes.train, sizes.test)
    assert prepare(task, params) == (train, test)
    assert prepare(task, changed(defaults, task, world_name, seed=1))[1] != test
    assert {record.prompt for record in train}.isdisjoint(record.prompt for record in test)
    assert len({record.id for record in train + test}) == len(train) + len(test)
    assert {record.task for record in train + test} == {task}


def test_the_test_set_does_not_depend_on_the_size_of_the_training_set(defaults):
    for task in ("geneval", "preference"):
        assert prepare(task, changed(defaults, task, train=10))[1] == prepare(task, defaults)[1]


def test_geneval_test_tags_are_equal_and_training_follows_the_mixture(defaults):
    train, test = prepare("geneval", changed(defaults, "geneval", train=20_000, test=192))
    assert Counter(record.metadata["tag"] for record in test) == dict.fromkeys(TAGS, 32)
    assert [record.metadata["tag"] for record in test[:6]] == list(TAGS)
    counts = Counter(record.metadata["tag"] for record in train)
    assert set(counts) == set(TRAIN_TAG_WEIGHTS)
    for tag, weight in TRAIN_TAG_WEIGHTS.items():
        expected = weight / sum(TRAIN_TAG_WEIGHTS.values())
        assert (
            abs(counts[tag] / 20_000 - expected) < 5 * (expected * (1 - expected) / 20_000) ** 0.5
        )
    # Only single_object, with its 16 prompts, has to repeat itself, and each of the 16 is there
    # twice.
    repeated = {
        prompt for prompt, times in Counter(record.prompt for record in test).items() if times > 1
    }
    assert repeated == {f"a photo of {with_article(name)}" for name in world.CLASSES}


def test_a_test_set_larger_than_the_grammar_leaves_prompts_for_training(defaults):
    train, test = prepare("geneval", changed(defaults, "geneval", train=500, test=600))
    counting = {record.prompt for record in test if record.metadata["tag"] == "counting"}
    assert len(counting) == 36  # three quarters of 16 classes x 3 counts
    assert {record.prompt for record in train}.isdisjoint(record.prompt for record in test)


def test_fifty_thousand_prompts_take_seconds(defaults):
    start = time.process_time()
    train, _ = prepare("geneval", changed(defaults, "geneval", "coco", train=50_000, test=553))
    assert len(train) == 50_000
    assert time.process_time() - start < 20  # 1.4 s on an idle core


def test_ocr_words_are_disjoint_and_drawable(defaults):
    train, test = prepare("ocr", defaults)
    assert {r.metadata["text"] for r in train}.isdisjoint(r.metadata["text"] for r in test)
    for record in train + test:
        assert record.prompt == f'a sign that says "{record.metadata["text"]}"'
        world.render(world.sample_scene(record.metadata, np.random.default_rng(0)))


def test_ocr_uses_every_template_outside_the_miniature(defaults):
    train, test = prepare("ocr", changed(defaults, "ocr", "coco", train=1200, test=600))
    assert len({record.prompt for record in train + test}) == 1800
    assert {r.metadata["text"] for r in train}.isdisjoint(r.metadata["text"] for r in test)
    for count in (60, 1200):  # also where each word comes only once
        train, _ = prepare("ocr", changed(defaults, "ocr", "coco", train=count, test=60))
        used = Counter(r.prompt.replace(f'"{r.metadata["text"]}"', '"{}"') for r in train)
        assert set(used) == set(TEMPLATES)
        assert max(used.values()) - min(used.values()) <= 10


def test_all_words_can_be_used_and_one_more_is_an_error(defaults):
    words = len(WORDS)
    train, test = prepare("ocr", changed(defaults, "ocr", train=words - 20, test=20))
    assert {r.metadata["text"] for r in train + test} == set(WORDS)
    with pytest.raises(
        StarError, match=rf"prompts\.ocr\.train: {words - 19} prompts .* at most {words - 20};"
    ):
        prepare("ocr", changed(defaults, "ocr", train=words - 19, test=20))
    with pytest.raises(
        StarError, match=rf"prompts\.ocr\.test: 9999 prompts .* at most {words - 150};"
    ):
        prepare("ocr", changed(defaults, "ocr", train=150, test=9999))
    most = (words - 10) * len(TEMPLATES)
    assert len(prepare("ocr", changed(defaults, "ocr", "coco", train=most, test=60))[0]) == most
    with pytest.raises(StarError, match=rf"at most {most};"):
        prepare("ocr", changed(defaults, "ocr", "coco", train=most + 1, test=60))


def test_preference_mixes_all_captions_of_the_world(defaults):
    train, test = prepare("preference", defaults)
    for records in (train, test):
        forms = Counter(record.metadata.get("tag", "sign") for record in records)
        assert set(forms) == {*TAGS, "sign"}
        assert min(forms.values()) > len(records) / 7 * 0.7
    for record in test:
        assert (
            record.metadata.get("prompt", f'a sign that says "{record.metadata.get("text")}"')
            == record.prompt
        )
        world.render(world.sample_scene(record.metadata, np.random.default_rng(0)))


# ---------------------------------------------------------------- files


def geneval_line(**changes) -> dict:
    line = {
        "tag": "position",
        "include": [
            {"class": "cup", "count": 1},
            {"class": "cat", "count": 1, "position": ["above", 0]},
        ],
        "prompt": "a photo of a cat above a cup",
    }
    return {**line, **changes}


def write_lines(path: Path, lines) -> str:
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    )
    return str(path)


def test_geneval_files_are_taken_in_their_order_without_test_prompts(defaults, tmp_path):
    # A published file spells this plural "couchs"; the grammar's "couches" must count as the same
    # prompt.
    def counting(prompt, count):
        clause = {"class": "couch", "count": count}
        return {
            "tag": "counting",
            "include": [clause],
            "exclude": [clause | {"count": count + 1}],
            "prompt": prompt,
        }

    held_out = [geneval_line(), counting("a photo of two couchs", 2)]
    others = [
        sample_metadata("position", world.CLASSES, np.random.default_rng(i)) for i in range(40)
    ]
    others = list(
        {
            line["prompt"]: line for line in others if line["prompt"] != held_out[0]["prompt"]
        }.values()
    )
    held_back = [
        counting(f"a photo of two {plural('couch')}", 2),
        geneval_line(prompt="A photo of a cat  above a cup."),
    ]
    files = {
        "test_file": write_lines(tmp_path / "test.jsonl", held_out),
        "train_file": write_lines(tmp_path / "train.jsonl", held_back + others),
    }
    train, test = prepare(
        "geneval", changed(defaults, "geneval", train=len(others), test=2, **files)
    )
    assert [record.metadata for record in test] == held_out
    assert [record.metadata for record in train] == others
    some, _ = prepare("geneval", changed(defaults, "geneval", train=5, test=2, **files))
    places = [others.index(record.metadata) for record in some]
    assert places == sorted(places)
    with pytest.raises(
        StarError,
        match=rf"prompts\.geneval\.train: 99 prompts asked .* at most {len(others)} that are not",
    ):
        prepare("geneval", changed(defaults, "geneval", train=99, test=2, **files))
    with pytest.raises(
        StarError, match=r"prompts\.geneval\.test: 3 prompts asked for, the file gives at most 2"
    ):
        prepare("geneval", changed(defaults, "geneval", train=5, test=3, **files))


def test_the_whole_test_file_is_kept_out_of_training(defaults, tmp_path):
    rng = np.random.default_rng(0)
    held_out = [sample_metadata("counting", world.CLASSES, rng) for _ in range(60)]
    path = write_lines(tmp_path / "test.jsonl", held_out)
    train, test = prepare(
        "geneval", changed(defaults, "geneval", train=2000, test=5, test_file=path)
    )
    assert len(test) == 5
    assert {record.prompt for record in train}.isdisjoint(line["prompt"] for line in held_out)
    signs = write_lines(
        tmp_path / "signs.txt", [f'a sign that says "{word}"' for word in WORDS[:60]]
    )
    train, test = prepare("ocr", changed(defaults, "ocr", train=100, test=5, test_file=signs))
    assert len(test) == 5
    assert {record.metadata["text"] for record in train}.isdisjoint(WORDS[:60])


@pytest.mark.parametrize(("count", "distinct"), [(5, 5), (20, 20), (30, 20), (80, 20)])
def test_a_test_file_that_repeats_its_prompts_gives_each_once_first(
    defaults, tmp_path, count, distinct
):
    lines = [
        geneval_line(prompt=f"a photo of cat {number}") for number in range(20)
    ] * 4  # copies of Flow-GRPO's do
    path = write_lines(tmp_path / "test.jsonl", lines)
    _, test = prepare("geneval", changed(defaults, "geneval", train=1, test=count, test_file=path))
    times = Counter(record.prompt for record in test)
    assert (len(times), sum(times.values())) == (distinct, count)
    assert max(times.values()) - min(times.values()) <= 1


def test_lines_of_the_published_sets_are_taken_as_they_are(defaults, tmp_path):
    """Lines as in GenEval's and Flow-GRPO's files: their class names, plurals, apostrophes and
    marks."""
    names = ("computer mouse", "tv remote", "computer keyboard")
    counts = [
        {
            "tag": "counting",
            "include": [{"class": name, "count": 2}],
            "exclude": [{"class": name, "count": 3}],
            "prompt": f"a photo of two {name}s",
        }
        for name in (*names, "bench", "toothbrush")  # published as "benchs", "toothbrushs"
    ]
    near = [
        {"class": "tv", "count": 1},
        {"class": "tv remote", "count": 1, "position": ["left of", 0]},
    ]
    beside = {"tag": "position", "include": near, "prompt": "a photo of a tv remote left of a tv"}
    path = write_lines(tmp_path / "evaluation_metadata.jsonl", [*counts, beside])
    _, test = prepare(
        "geneval", changed(defaults, "geneval", "coco", train=1, test=6, test_file=path)
    )
    assert [record.metadata for record in test] == [*counts, beside]
    signs = {
        "Human: Mostly Harmless": 'A zoo\'s exhibit, with a sign that reads "Human: Mostly Harmless" in bold.',
        "Queen Anne's Revenge": "A pirate's sail with \"Queen Anne's Revenge\". The ship's deck is wet.",
        "Contains 0 Responsibility": 'An inscription that reads, "Contains 0 Responsibility". Gulls circle.',
        "TRUSTNO1": 'A lock set to "TRUSTNO1". The spy’s face is hidden.',
    }
    path = write_lines(tmp_path / "test.txt", signs.values())
    _, test = prepare("ocr", changed(defaults, "ocr", "coco", test=4, test_file=path))
    assert {record.metadata["text"]: record.prompt for record in test} == signs


def test_a_test_file_that_uses_up_a_form_is_an_error_not_an_endless_loop(defaults, tmp_path):
    lines = [
        {
            "tag": "counting",
            "include": [{"class": name, "count": n}],
            "prompt": f"a photo of {word} {plural(name)}",
        }
        for name in world.CLASSES
        for n, word in ((2, "two"), (3, "three"), (4, "four"))
    ]
    path = write_lines(tmp_path / "test.jsonl", lines)
    with pytest.raises(
        StarError, match=r"prompts\.geneval\.test_file: holds every counting prompt"
    ):
        prepare("geneval", changed(defaults, "geneval", train=100, test=48, test_file=path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'tag': 1}", "not valid JSON"),
        ({"tag": "colors", "prompt": "a photo"}, "key 'include' is missing"),
        (geneval_line(tag="colours"), "tag 'colours' is not one of single_object, two_object"),
        (geneval_line(exlude=[]), "unknown key 'exlude'"),
        (geneval_line(prompt="..."), "'prompt' must be a text with at least one word"),
        (geneval_line(include=[]), "'include' must be a list of clauses"),
        (geneval_line(include=["cat"]), "include[0] must be an object"),
        (geneval_line(include=[{"class": "cat"}]), "include[0]: key 'count' is missing"),
        (geneval_line(include=[{"class": "cat", "count": 0}]), "count 0 must be a whole number"),
        (
            geneval_line(include=[{"class": "cat", "count": True}]),
            "count True must be a whole number",
        ),
        (
            geneval_line(include=[{"class": "umbrela", "count": 1}]),
            "unknown class 'umbrela'; the nearest of the 16 known",
        ),
        (geneval_line(include=[{"class": "umbrela", "count": 1}]), "'umbrella'"),
        (geneval_line(exclude=[{"class": "dog", "count": 1}]), "exclude[0]: unknown class 'dog'"),
        (
            geneval_line(include=[{"class": "cat", "count": 1, "color": "grey"}]),
            "color 'grey' is not one of red",
        ),
        (
            geneval_line(include=[{"class": "cat", "count": 1, "position": "above"}]),
            "must be [relation, clause]",
        ),
        (
            geneval_line(include=[{"class": "cat", "count": 1, "position": ["above", 0]}]),
            "must be an earlier one",
        ),
    ],
)
def test_a_malformed_geneval_line_is_named(defaults, tmp_path, line, message):
    path = write_lines(tmp_path / "train.jsonl", [geneval_line(), line])
    with pytest.raises(StarError) as error:
        prepare("geneval", changed(defaults, "geneval", train=1, train_file=path))
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_coco_accepts_what_the_miniature_refuses(defaults, tmp_path):
    path = write_lines(
        tmp_path / "test.jsonl", [geneval_line(include=[{"class": "tv remote", "count": 1}])]
    )
    _, test = prepare("geneval", changed(defaults, "geneval", "coco", test=1, test_file=path))
    assert test[0].metadata["include"][0]["class"] == "tv remote"


def test_ocr_files_need_a_quoted_span_in_each_line(defaults, tmp_path):
    good = [
        'Skyline with "Hello World" in fireworks.',
        'a “stop” sign and "another"',
        'a door, "EXIT"',
    ]
    path = write_lines(tmp_path / "test.txt", good)
    train, test = prepare(
        "ocr", changed(defaults, "ocr", train=len(WORDS) - 2, test=3, test_file=path)
    )
    assert [record.metadata["text"] for record in test] == ["Hello World", "stop", "EXIT"]
    assert {record.metadata["text"] for record in train} == set(WORDS) - {"STOP", "EXIT"}
    for bad in ("a sign that says OPEN", 'a sign that says ""', 'one quote " only', 'a "..." sign'):
        path = write_lines(tmp_path / "bad.txt", [*good, "", bad])
        with pytest.raises(StarError, match=r"bad\.txt:5: no quoted span"):
            prepare("ocr", changed(defaults, "ocr", train=1, test=1, train_file=path))


def test_preference_files_are_one_prompt_a_line(defaults, tmp_path, capsys):
    lines = ["a cat, 8k", "a dog", "猫"]
    train_path, test_path = (
        write_lines(tmp_path / "a.txt", [*lines, "A  Fox"]),
        write_lines(tmp_path / "b.txt", ["a fox"]),
    )
    sizes = {"train": 3, "test": 1, "train_file": train_path, "test_file": test_path}
    train, test = prepare("preference", changed(defaults, "preference", **sizes))
    assert ([r.prompt for r in train], [r.prompt for r in test]) == (lines, ["a fox"])
    assert all(record.metadata == {} for record in train + test)
    path = write_lines(tmp_path / "some.txt", ["a cat", "?!", "❤", "a dog"])
    some, _ = prepare("preference", changed(defaults, "preference", train=2, train_file=path))
    assert [record.prompt for record in some] == ["a cat", "a dog"]
    assert "some.txt: 2 lines without a word left out" in capsys.readouterr().out
    with pytest.raises(StarError, match=r"none\.txt: no line has a word"):
        path = write_lines(tmp_path / "none.txt", ["?!", "❤"])
        prepare("preference", changed(defaults, "preference", test=1, test_file=path))
    with pytest.raises(StarError, match=r"absent\.txt: cannot be read"):
        prepare(
            "preference", changed(defaults, "preference", train_file=str(tmp_path / "absent.txt"))
        )


@settings(deadline=None)
@given(st.text(alphabet='ab "“”', max_size=20))
def test_a_quoted_span_lies_between_quotes_and_has_no_outer_blanks(prompt):
    span = quoted_span(prompt)
    if span is not None:
        start, end = span
        assert prompt[start:end] == prompt[start:end].strip() != ""
        assert prompt[:start].rstrip()[-1] in '"“”'  # ”same” as in Swedish, if there is no other
        assert prompt[end:].lstrip()[0] in '"”'


@pytest.mark.parametrize("word", WORDS[::40])
@pytest.mark.parametrize("template", [*MINIATURE_TEMPLATES, *TEMPLATES])
def test_every_template_quotes_its_word(template, word):
    prompt = template.format(word)
    start, end = quoted_span(prompt)
    assert prompt[start:end] == word


def test_prompts_and_core_need_no_torch():
    code = "import sys, star.prompts.prepare, star.prompts.core_content, star.prompts.core_tokens; "
    code += "print({'torch', 'transformers', 'diffusers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "set()"
