"""Prompt records: round trip, one form of file, and errors that name file and line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star.config.params import TASKS
from star.prompts.records import (
    ID,
    KINDS,
    CoreSpan,
    PromptRecord,
    read_benchmarks,
    read_records,
    write_records,
)
from star.system.errors import StarError

GOOD = {"id": "a", "task": "ocr", "prompt": 'a sign that says "HI"', "metadata": {"text": "HI"}}
CAT = {"class": "cat", "count": 1}
NEEDED = {
    "geneval": {"tag": "single_object", "include": [CAT]},
    "ocr": {"text": "HI"},
}  # of a task's metadata

texts = st.text(max_size=20).map(
    lambda text: text + "x"
)  # any character, line ends of all kinds among them
ids = st.from_regex(ID, fullmatch=True)


@st.composite
def records(draw) -> PromptRecord:
    prompt = draw(texts)
    start = draw(st.integers(0, len(prompt) - 1))
    end = draw(st.integers(start + 1, len(prompt)))
    span = CoreSpan(start, end, draw(st.sampled_from(KINDS)), draw(st.none() | st.integers(0, 5)))
    task = draw(st.sampled_from(TASKS))
    metadata = draw(
        st.dictionaries(texts, texts | st.integers() | st.lists(texts), max_size=3)
    ) | NEEDED.get(task, {})
    return PromptRecord(draw(ids), task, prompt, metadata, draw(st.sampled_from([None, (span,)])))


@settings(max_examples=40, deadline=None)
@given(st.lists(records(), min_size=1, max_size=5, unique_by=lambda record: record.id))
def test_what_is_written_is_read_back(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("records") / "set.jsonl"
    write_records(path, values)
    assert read_records(path) == values


def test_the_file_is_sorted_json_lines_and_replaced_whole(tmp_path):
    path = tmp_path / "new" / "set.jsonl"
    write_records(
        path,
        [PromptRecord("b", "preference", "é cat", {"z": 1, "a": 2}, (CoreSpan(2, 5, "subject"),))],
    )
    expected = (
        '{"core": [{"clause": null, "end": 5, "kind": "subject", "start": 2}], "id": "b", '
        '"metadata": {"a": 2, "z": 1}, "prompt": "é cat", "task": "preference"}\n'
    )
    assert path.read_bytes() == expected.encode("utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["set.jsonl"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "set.jsonl"
    write_records(path, [PromptRecord(**GOOD)])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_records(
            path, [PromptRecord(**GOOD), PromptRecord("b", "ocr", "x", {"not json": object()})]
        )
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["set.jsonl"]


def test_a_surrogate_pair_is_a_character(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({**GOOD, "prompt": '\U0001f408 "HI"'}))
    assert "\\ud83d\\udc08" in path.read_text()
    assert read_records(path)[0].prompt == '\U0001f408 "HI"'


def test_blank_lines_byte_order_mark_and_crlf_are_tolerated(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n")
    assert read_records(path) == [PromptRecord(**GOOD)]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object, found list"),
        ("[" * 100_000, "not valid JSON"),
        (json.dumps(GOOD), "id 'a' appears twice, first on line 1"),
        (
            json.dumps({**GOOD, "id": "b", "prompt": "a \ud83d cat"}),
            '"\\ud83d" is half a surrogate pair',
        ),
        (
            json.dumps({**GOOD, "id": "b", "metadata": {"\udc00": 1}}),
            '"\\udc00" is half a surrogate pair',
        ),
        (json.dumps({**GOOD, "id": "b", "prompt": "  "}), "'prompt' must be a non-empty string"),
        (json.dumps({**GOOD, "id": 3}), "'id' must be a non-empty string"),
        *(
            (json.dumps({**GOOD, "id": i}), "names files")
            for i in ("../b", "a/b", ".b", "a b", "é", "a\n", "a" * 101)
        ),
        (json.dumps({**GOOD, "id": "b", "metadata": []}), "'metadata' must be a non-empty object"),
        (
            json.dumps({**GOOD, "id": "b", "task": "sing"}),
            "task 'sing' is not one of geneval, ocr, preference",
        ),
        (json.dumps({**GOOD, "id": "b", "spans": []}), "unknown key 'spans'"),
        (json.dumps({**GOOD, "id": "b", "core": 3}), "'core' must be a list of spans"),
        (json.dumps({**GOOD, "id": "b", "core": [{"start": 0, "end": 1}]}), "a core span is"),
        (
            json.dumps({**GOOD, "id": "b", "core": [{"start": 0, "end": 99, "kind": "text"}]}),
            "does not lie in the prompt",
        ),
        (
            json.dumps({**GOOD, "id": "b", "core": [{"start": 2, "end": 2, "kind": "text"}]}),
            "does not lie in the prompt",
        ),
        (
            json.dumps({**GOOD, "id": "b", "core": [{"start": True, "end": 2, "kind": "text"}]}),
            "does not lie in the prompt",
        ),
        (
            json.dumps({**GOOD, "id": "b", "core": [{"start": 0, "end": 2, "kind": "noun"}]}),
            "core kind 'noun'",
        ),
        (
            json.dumps(
                {**GOOD, "id": "b", "core": [{"start": 0, "end": 2, "kind": "text", "clause": -1}]}
            ),
            "core clause -1",
        ),
    ],
)
def test_a_malformed_line_is_named(tmp_path, second, message):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + second + "\n")
    with pytest.raises(StarError) as error:
        read_records(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "metadata", "message"),
    [
        *(
            ("geneval", {"tag": "colors", "include": include}, "'include' must be a list")
            for include in (5, [], {}, "x")
        ),
        *(
            ("geneval", {"tag": "colors", "include": [x]}, r"include\[0\] must be an object")
            for x in ("x", 5, None, [])
        ),
        ("geneval", {"tag": "colors", "include": [{}]}, r"include\[0\]: key 'class' is missing"),
        *(
            (
                "geneval",
                {"tag": "colors", "include": [CAT, CAT | change]},
                rf"include\[1\]: {message}",
            )
            for change, message in (
                ({"class": 3}, "class 3 must be the name"),
                ({"class": ["cat"]}, "class .* must be the name"),
                ({"class": " "}, "class ' ' must be the name"),
                ({"count": "1"}, "count '1' must be a whole number"),
                ({"count": 0}, "count 0 must be"),
                ({"count": True}, "count True must be"),
                ({"position": 5}, "position 5 must be"),
                ({"position": []}, r"position \[\] must be"),
                ({"position": [["above"], 0]}, "position .* must be"),
                ({"position": ["above", 1]}, "position refers to clause 1"),
                ({"color": 4}, "color 4 is not one of red"),
                ({"colour": "red"}, "unknown key 'colour'"),
            )
        ),
        ("geneval", {"tag": "colors", "include": [CAT], "exclude": 5}, "'exclude' must be a list"),
        (
            "geneval",
            {"tag": "colors", "include": [CAT], "exclude": [3]},
            r"exclude\[0\] must be an object",
        ),
        ("geneval", {}, "key 'include' is missing; a record of the task geneval needs it"),
        ("geneval", {"include": [CAT]}, "key 'tag' is missing"),
        ("geneval", {"include": [CAT], "tag": ["colors"]}, "tag .* is not one of single_object"),
        ("preference", {"include": [{}]}, r"include\[0\]: key 'class' is missing"),
        ("ocr", {}, "key 'text' is missing; a record of the task ocr needs it"),
        ("ocr", {"text": 5}, "text 5 must be the word"),
        ("ocr", {"text": ""}, "text '' must be the word"),
    ],
)
def test_metadata_that_no_stage_can_use_are_named(tmp_path, task, metadata, message):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({**GOOD, "task": task, "metadata": metadata}))
    with pytest.raises(StarError, match=f"^{path}:1: metadata: {message}") as error:
        read_records(path)
    assert "\n" not in str(error.value)


def test_metadata_of_any_class_are_taken_as_they_are(tmp_path):
    metadata = {
        "tag": "position",
        "include": [CAT, {"class": "axolotl", "count": 2, "position": ["above", 0]}],
    }
    path = tmp_path / "set.jsonl"
    for task, kept in (
        ("geneval", metadata),
        ("preference", metadata),
        ("preference", {}),
        ("preference", {"a": 1}),
    ):
        path.write_text(json.dumps({**GOOD, "task": task, "metadata": kept}))
        assert read_records(path)[0].metadata == kept


@pytest.mark.parametrize("key", sorted(GOOD))
def test_a_missing_key_is_named(tmp_path, key):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({name: value for name, value in GOOD.items() if name != key}))
    with pytest.raises(StarError, match=f":1: key '{key}' is missing"):
        read_records(path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(StarError, match=r"none\.jsonl: cannot be read \(No such file"):
        read_records(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(StarError, match="the file is empty"):
        read_records(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n\xe9\n")
    with pytest.raises(StarError, match=r"latin\.jsonl:2: not UTF-8"):
        read_records(tmp_path / "latin.jsonl")


def test_every_benchmark_has_its_own_task_and_ids(tmp_path):
    sets = {
        task: [PromptRecord(f"{task}-{i}", task, "HI", NEEDED.get(task, {})) for i in range(2)]
        for task in TASKS
    }
    for task, values in sets.items():
        write_records(tmp_path / task / "test.jsonl", values)
    assert read_benchmarks(tmp_path) == sets
    write_records(tmp_path / "preference" / "test.jsonl", sets["ocr"])
    with pytest.raises(
        StarError,
        match="preference/test.jsonl: record ocr-0 is one of ocr; give the prompts of pref",
    ):
        read_benchmarks(tmp_path)
    write_records(
        tmp_path / "preference" / "test.jsonl", [PromptRecord("ocr-1", "preference", "HI", {})]
    )
    with pytest.raises(
        StarError,
        match="preference/test.jsonl: record ocr-1 has the id of one in .*/ocr/test.jsonl",
    ):
        read_benchmarks(tmp_path)
