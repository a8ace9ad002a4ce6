"""Prompt sets: GenEval's metadata form, no test prompt in training, files in the published formats,
errors by line."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from star.config.params import TASKS, PromptSetParams, PromptsParams
from star.miniature import world
from star.prompts.geneval import (
    COCO_CLASSES,
    TAGS,
    TRAIN_TAG_WEIGHTS,
    grammar_size,
    plural,
    sample_metadata,
    with_article,
)
from star.prompts.ocr import TEMPLATES
from star.prompts.prepare import prepare
from star.prompts.records import PromptRecord
from star.prompts.words import WORDS
from star.system.errors import StarError

Sets = tuple[list[PromptRecord], list[PromptRecord]]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def prepared(task: str, world_name: str = "miniature", seed: int = 0, **values) -> Sets:
    """Return train and test prompts of a task; ``values`` are those of its set.

    Lines are written to a file of the key's name. The other tasks have one prompt each."""
    for key, lines in values.items():
        if isinstance(lines, list):
            texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
            Path(key).write_text("".join(text + "\n" for text in texts))
            values[key] = key
    values = {"train": 100, "test": 20, "train_file": None, "test_file": None} | values
    sets = dict.fromkeys(TASKS, PromptSetParams(1, 1, None, None)) | {
        task: PromptSetParams(**values)
    }
    return prepare(task, PromptsParams(world=world_name, **sets), seed)


def prompts(records: list[PromptRecord]) -> list[str]:
    return [record.prompt for record in records]


def words(records: list[PromptRecord]) -> list[str]:
    return [record.metadata["text"] for record in records]


def test_the_words_and_classes_are_what_they_should_be():
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == 80
    assert set(world.CLASSES) <= set(COCO_CLASSES)
    assert (COCO_CLASSES[0], COCO_CLASSES[79]) == ("person", "toothbrush")  # COCO's order
    assert COCO_CLASSES[63:67] == ("laptop", "computer mouse", "tv remote", "computer keyboard")
    assert len(set(WORDS)) == len(WORDS) >= 260
    assert all(re.fullmatch("[A-Z]{2,5}", word) for word in WORDS)


@pytest.mark.parametrize("tag", TAGS)
def test_grammar_size_counts_the_different_prompts(tag):
    rng, classes = np.random.default_rng(0), ("cat", "horse", "apple")
    drawn = {sample_metadata(tag, classes, rng)["prompt"] for _ in range(6000)}
    assert len(drawn) == grammar_size(tag, 3)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("world_name", ["miniature", "coco"])
def test_sets_are_seeded_unique_and_disjoint(task, world_name):
    sizes = {"train": 250, "test": 60}
    train, test = prepared(task, world_name, **sizes)
    assert (len(train), len(test)) == (250, 60)
    assert prepared(task, world_name, **sizes) == (train, test)
    assert prepared(task, world_name, seed=1, **sizes)[1] != test
    if task != "ocr":
        assert prepared(task, world_name, train=10, test=60)[1] == test, "whatever train is"
    assert set(prompts(train)).isdisjoint(prompts(test))
    assert len({record.id for record in train + test}) == 310
    assert {record.task for record in train + test} == {task}
    if task == "ocr":
        assert set(words(train)).isdisjoint(words(test))
    for record in train + test if world_name == "miniature" else ():
        world.render(world.sample_scene(record.metadata, np.random.default_rng(0)))


def content(record: PromptRecord) -> str:
    """Return the word of a sign, or what a caption asks for, whichever object comes first."""
    if "text" in record.metadata:
        return record.metadata["text"]
    things = record.prompt.removeprefix("a photo of ")
    for relation, opposite in {" right of ": " left of ", " below ": " above "}.items():
        if relation in things:
            things = opposite.join(reversed(things.split(relation)))
    return " and ".join(sorted(things.split(" and ")))


@pytest.mark.parametrize(
    ("world_name", "geneval"), [("miniature", (4000, 192)), ("coco", (50_000, 553))]
)
def test_no_training_set_has_the_content_of_a_test_prompt_of_any_task(world_name, geneval):
    sizes = {"geneval": geneval, "ocr": (150, 96), "preference": (2000, 384)}
    sets = {task: PromptSetParams(*counts, None, None) for task, counts in sizes.items()}
    drawn = {task: prepare(task, PromptsParams(world=world_name, **sets), 0) for task in TASKS}
    tests = {content(record) for _, test in drawn.values() for record in test}
    forms = {*TRAIN_TAG_WEIGHTS}
    expected = {"geneval": forms, "ocr": {None}, "preference": forms | {None}}
    for task, (train, _) in drawn.items():
        assert len(train) == sizes[task][0]
        assert {record.metadata.get("tag") for record in train} == expected[task]
        assert {content(record) for record in train}.isdisjoint(tests)


def test_geneval_test_tags_are_equal_and_training_follows_the_mixture():
    train, test = prepared("geneval", train=20_000, test=192)
    assert Counter(record.metadata["tag"] for record in test) == dict.fromkeys(TAGS, 32)
    assert [record.metadata["tag"] for record in test[:6]] == list(TAGS)
    counts = Counter(record.metadata["tag"] for record in train)
    assert set(counts) == set(TRAIN_TAG_WEIGHTS)
    for tag, weight in TRAIN_TAG_WEIGHTS.items():
        share = weight / sum(TRAIN_TAG_WEIGHTS.values())
        assert abs(counts[tag] / 20_000 - share) < 5 * (share * (1 - share) / 20_000) ** 0.5
    # Only single_object has to repeat itself, and each of its 16 prompts is there twice.
    repeated = {prompt for prompt, times in Counter(prompts(test)).items() if times > 1}
    assert repeated == {f"a photo of {with_article(name)}" for name in world.CLASSES}


def test_a_test_set_larger_than_the_grammar_leaves_prompts_for_training():
    train, test = prepared("geneval", train=500, test=600)
    counting = {record.prompt for record in test if record.metadata["tag"] == "counting"}
    assert len(counting) == 36  # three quarters of 16 classes x 3 counts
    assert set(prompts(train)).isdisjoint(prompts(test))


def test_ocr_uses_every_template_outside_the_miniature():
    train, test = prepared("ocr", "coco", train=1200, test=600)
    assert len(set(prompts(train + test))) == 1800
    assert set(words(train)).isdisjoint(words(test))
    for count in (60, 1200):  # also where each word comes only once
        train, _ = prepared("ocr", "coco", train=count, test=60)
        used = Counter(r.prompt.replace(f'"{r.metadata["text"]}"', '"{}"') for r in train)
        assert set(used) == set(TEMPLATES)
        assert max(used.values()) - min(used.values()) <= 10


def test_all_words_can_be_used_and_one_more_is_an_error():
    count, most = len(WORDS), (len(WORDS) - 10) * len(TEMPLATES)
    train, test = prepared("ocr", train=count - 20, test=20)
    assert set(words(train + test)) == set(WORDS)
    assert len(prepared("ocr", "coco", train=most, test=60)[0]) == most
    for world_name, train, test, told in (
        ("miniature", count - 19, 20, rf"train: {count - 19} .* at most {count - 20};"),
        ("miniature", 150, 9999, rf"test: 9999 .* at most {count - 150};"),
        ("coco", most + 1, 60, rf"train: {most + 1} .* at most {most};"),
    ):
        with pytest.raises(StarError, match=rf"prompts\.ocr\.{told}"):
            prepared("ocr", world_name, train=train, test=test)


def test_preference_mixes_all_captions_of_the_world():
    train, test = prepared("preference", train=2000, test=384)
    for records, tags in ((train, TRAIN_TAG_WEIGHTS), (test, TAGS)):
        forms = Counter(record.metadata.get("tag", "sign") for record in records)
        assert set(forms) == {*tags, "sign"}
        assert min(forms.values()) > len(records) / 7 * 0.7
        for record in records:
            sign = f'a sign that says "{record.metadata.get("text")}"'
            assert record.metadata.get("prompt", sign) == record.prompt


# ---------------------------------------------------------------- files


def geneval_line(**changes) -> dict:
    cat = {"class": "cat", "count": 1, "position": ["above", 0]}
    include = [{"class": "cup", "count": 1}, cat]
    prompt = "a photo of a cat above a cup"
    return {"tag": "position", "include": include, "prompt": prompt, **changes}


def counting_line(name: str, count: int, prompt: str) -> dict:
    include, exclude = ([{"class": name, "count": number}] for number in (count, count + 1))
    return {"tag": "counting", "include": include, "exclude": exclude, "prompt": prompt}


def test_keys_of_geneval_lines_that_no_rule_uses_are_left_out_and_told(capsys):
    line = geneval_line(index=3, detailed_caption="a cat")
    _, test = prepared("geneval", train=1, test=1, test_file=[line])
    assert test[0].metadata == geneval_line()
    assert capsys.readouterr().out.count("left out: detailed_caption, index\n") == 1


def test_geneval_files_are_taken_in_their_order_without_test_prompts():
    held_out = [geneval_line(), counting_line("couch", 2, "a photo of two couchs")]
    rngs = (np.random.default_rng(seed) for seed in range(40))
    drawn = {
        line["prompt"]: line for line in (sample_metadata("colors", world.CLASSES, r) for r in rngs)
    }
    others = list(drawn.values())
    held_back = [
        counting_line("couch", 2, f"a photo of two {plural('couch')}"),  # the same by its clauses
        geneval_line(prompt="A photo of a cat  above a cup."),
    ]
    files = {"test_file": held_out, "train_file": held_back + others}
    train, test = prepared("geneval", train=len(others), test=2, **files)
    assert [record.metadata for record in test] == held_out
    assert [record.metadata for record in train] == others
    some, _ = prepared("geneval", train=5, test=2, **files)
    places = [others.index(record.metadata) for record in some]
    assert places == sorted(places)
    for sizes, told in (
        ({"train": 99, "test": 2}, rf"train: 99 .* at most {len(others)}"),
        ({"train": 5, "test": 3}, "test: 3 .* at most 2"),
    ):
        with pytest.raises(StarError, match=rf"prompts\.geneval\.{told}"):
            prepared("geneval", **sizes, **files)


def test_the_whole_test_file_is_kept_out_of_training():
    rng = np.random.default_rng(0)
    held_out = [sample_metadata("counting", world.CLASSES, rng) for _ in range(60)]
    train, test = prepared("geneval", train=2000, test=5, test_file=held_out)
    assert len(test) == 5
    assert set(prompts(train)).isdisjoint(line["prompt"] for line in held_out)
    signs = [f'a sign that says "{word}"' for word in WORDS[:60]]
    train, test = prepared("ocr", train=100, test=5, test_file=signs)
    assert len(test) == 5
    assert set(words(train)).isdisjoint(WORDS[:60])


@pytest.mark.parametrize(("count", "distinct"), [(5, 5), (20, 20), (30, 20), (80, 20)])
def test_a_test_file_that_repeats_its_prompts_gives_each_once_first(count, distinct):
    # Copies of Flow-GRPO's do.
    lines = [geneval_line(prompt=f"a photo of cat {number}") for number in range(20)] * 4
    _, test = prepared("geneval", train=1, test=count, test_file=lines)
    times = Counter(prompts(test))
    assert (len(times), sum(times.values())) == (distinct, count)
    assert max(times.values()) - min(times.values()) <= 1


def test_a_test_file_that_uses_up_a_form_is_an_error_not_an_endless_loop():
    numbers = {2: "two", 3: "three", 4: "four"}.items()
    pairs = [(name, *number) for name in world.CLASSES for number in numbers]
    lines = [counting_line(name, n, f"a photo of {word} {plural(name)}") for name, n, word in pairs]
    with pytest.raises(StarError, match=r"prompts\.geneval: .*counting"):
        prepared("geneval", train=100, test=48, test_file=lines)


def one(**clause) -> dict:
    return geneval_line(include=[{"class": "cat", "count": 1} | clause])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{'tag': 1}", "JSON"),
        ({"tag": "colors", "prompt": "a photo"}, "key 'include' is missing"),
        (geneval_line(tag="colours"), "tag 'colours' is not one of single_object, two_object"),
        (geneval_line(exlude=[]), "unknown key 'exlude'"),
        (geneval_line(prompt="..."), "'prompt'"),
        (geneval_line(include=[{"class": "cat"}]), "include[0]: key 'count' is missing"),
        (one(**{"class": "glass"}), "nearest of the 16 known is 'wine glass'"),
        (one(**{"class": "umbrela"}), "'umbrela'; the nearest of the 16 known is 'umbrella'"),
        (geneval_line(exclude=[{"class": "dog", "count": 1}]), "exclude[0]: unknown class 'dog'"),
        (one(color="grey"), "color 'grey' is not one of red"),
        (one(position="above"), "position 'above'"),
        (one(position=["above", 0]), "position refers to clause 0"),
    ],
)
def test_a_malformed_geneval_line_is_named(line, told):
    with pytest.raises(StarError) as error:
        prepared("geneval", train=1, train_file=[geneval_line(), line])
    assert str(error.value).startswith("train_file:2: ") and told in str(error.value)
    assert "\n" not in str(error.value)


def test_ocr_files_need_a_quoted_span_in_each_line():
    good = ['Skyline with "Hello World".', "a “stop” sign", 'a door, "EXIT"']
    train, test = prepared("ocr", train=len(WORDS) - 2, test=3, test_file=good)
    assert words(test) == ["Hello World", "stop", "EXIT"]
    assert set(words(train)) == set(WORDS) - {"STOP", "EXIT"}
    for bad in ("a sign that says OPEN", 'a sign that says ""', 'one quote " only', 'a "..." sign'):
        with pytest.raises(StarError, match="train_file:5: .*quote"):
            prepared("ocr", train=1, test=1, train_file=[*good, "", bad])


def test_preference_files_are_one_prompt_a_line(capsys):
    lines = ["a cat, 8k", "a dog", "猫"]
    files = {"train_file": [*lines, "A  Fox"], "test_file": ["a fox"]}
    train, test = prepared("preference", train=3, test=1, **files)
    assert (prompts(train), prompts(test)) == (lines, ["a fox"])
    assert all(record.metadata == {} for record in train + test)
    some, _ = prepared("preference", train=2, train_file=["a cat", "?!", "❤", "a dog"])
    assert prompts(some) == ["a cat", "a dog"]
    assert "train_file: 2 lines" in capsys.readouterr().out
    with pytest.raises(StarError, match="test_file: no line"):
        prepared("preference", test=1, test_file=["?!", "❤"])
    looked = r"^prompts\.preference\.test_file: .+ /\S+/absent\.txt; .+ data/prompts/absent\.txt$"
    with pytest.raises(StarError, match=looked):
        prepared("preference", test=1, test_file="absent.txt")


@pytest.mark.parametrize(
    ("line", "texts"),
    [
        ('A 12" record sleeve titled "BLUE HOUR"', "BLUE HOUR"),
        ("A 12” record of 6'2\" titled “BLUE HOUR”", "BLUE HOUR"),
        ("a door 7'' wide, \"AREA 51\" on it", "AREA 51"),
        (r"a sign that says \"OPEN\"", "OPEN"),
        ("a board, ``HELLO''", "HELLO"),
        ("a board, `HELLO`", "HELLO"),
        ("a board, ＂HELLO＂", "HELLO"),
        ('a board, “HELLO"', "HELLO"),
        ("«Bonjour», a sign", "Bonjour"),
        ("a mug, &quot;Best Dad&quot;", "Best Dad"),
        ("a mug with R&B; 'rock' and dogs' bowls", "rock"),
        ('A zoo\'s exhibit, a sign that reads "Human: Mostly Harmless".', "Human: Mostly Harmless"),
        ("A sail with \"Queen Anne's Revenge\". The deck's wet.", "Queen Anne's Revenge"),
        ('A lock set to "TRUSTNO1". The spy’s face is hidden.', "TRUSTNO1"),
        ('"SALE" at the top and "50% OFF" below', ["SALE", "50% OFF"]),
        ('“A” and „B“, then "!" and the "a" again', ["A", "B"]),
        ('the "12" single" cover', "12"),
    ],
)
def test_the_texts_to_be_drawn_are_taken_and_doubts_are_told(capsys, line, texts):
    _, test = prepared("ocr", "coco", test=2, test_file=['a sign, "OK"', line])
    assert [record.metadata["text"] for record in test] == ["OK", texts]
    told = capsys.readouterr().out
    assert ("1 lines with doubtful quotations; to be drawn by line 2: " in told) == (
        isinstance(texts, list) or "single" in line
    )


def test_captions_that_differ_in_case_blanks_stop_or_flags_are_one():
    lines = ["A cat", "a  Cat .", "a cat --ar 16:9 --v 5", "a dog --no cats", "A fox —ar 2:3"]
    mirrored = "a photo of a cup  right of a cat."
    lines += ["--ar 3:2", mirrored, "a big dog -- asleep"]
    held_out = ["a fox.", "a photo of a cat left of a cup"]
    train, _ = prepared("preference", train=3, test=1, train_file=lines, test_file=held_out)
    assert prompts(train) == ["A cat", "a dog --no cats", "a big dog -- asleep"]


def test_prompts_and_core_need_no_torch():
    code = "import sys, star.prompts.prepare, star.prompts.core_content, star.prompts.core_tokens; "
    code += "print({'torch', 'transformers', 'diffusers'} & set(sys.modules))"
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert done.stdout.strip() == "set()"
