"""Prompt records: round trip, one form of file, and errors that name file and line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star.config.params import SPANS, TASKS
from star.prompts.records import (
    ID,
    CoreSpan,
    PromptRecord,
    read_benchmarks,
    read_records,
    write_records,
)
from star.system.errors import StarError

GOOD = {"id": "a", "task": "ocr", "prompt": 'a sign that says "HI"', "metadata": {"text": "HI"}}
CAT = {"class": "cat", "count": 1}
# What a task's metadata need.
NEEDED = {"geneval": {"tag": "single_object", "include": [CAT]}, "ocr": {"text": "HI"}}

# Any character, line ends of all kinds among them.
texts = st.text(max_size=20).map(lambda text: text + "x")


@st.composite
def records(draw) -> PromptRecord:
    prompt = draw(texts)
    start = draw(st.integers(0, len(prompt) - 1))
    end = draw(st.integers(start + 1, len(prompt)))
    span = CoreSpan(start, end, draw(st.sampled_from(SPANS)), draw(st.none() | st.integers(0, 5)))
    task = draw(st.sampled_from(TASKS))
    values = texts | st.integers() | st.lists(texts)
    metadata = draw(st.dictionaries(texts, values, max_size=3)) | NEEDED.get(task, {})
    name = draw(st.from_regex(ID, fullmatch=True))
    return PromptRecord(name, task, prompt, metadata, draw(st.sampled_from([None, (span,)])))


@settings(max_examples=40, deadline=None)
@given(st.lists(records(), min_size=1, max_size=5, unique_by=lambda record: record.id))
def test_what_is_written_is_read_back(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("records") / "set.jsonl"
    write_records(path, values)
    assert read_records(path) == values


def test_the_file_is_sorted_json_lines_and_replaced_whole(tmp_path):
    path = tmp_path / "new" / "set.jsonl"
    span = CoreSpan(2, 5, "subject")
    write_records(path, [PromptRecord("b", "preference", "é cat", {"z": 1, "a": 2}, (span,))])
    expected = (
        '{"core": [{"clause": null, "end": 5, "kind": "subject", "start": 2}], "id": "b", '
        '"metadata": {"a": 2, "z": 1}, "prompt": "é cat", "task": "preference"}\n'
    )
    assert path.read_bytes() == expected.encode("utf-8")
    with pytest.raises(TypeError):
        write_records(path, [PromptRecord("b", "ocr", "x", {"not json": object()})])
    assert path.read_bytes() == expected.encode("utf-8"), "a failed write leaves the old file"
    assert [file.name for file in path.parent.iterdir()] == ["set.jsonl"]


def test_escaped_pairs_blank_lines_byte_order_mark_and_crlf_are_tolerated(tmp_path):
    path = tmp_path / "set.jsonl"
    line = GOOD | {"prompt": '\U0001f408 "HI"'}
    written = json.dumps(line)
    assert "\\ud83d\\udc08" in written, "a surrogate pair is a character"
    path.write_bytes(b"\xef\xbb\xbf" + written.encode() + b"\r\n\r\n")
    assert read_records(path) == [PromptRecord(**line)]


def refused(path, *lines: str) -> str:
    """Return the message, of one line, with which a file of these lines is refused."""
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(StarError) as caught:
        read_records(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ("{", "JSON"),
        ("[1]", "list"),
        *(
            (json.dumps({k: v for k, v in GOOD.items() if k != key}), f"key '{key}' is missing")
            for key in GOOD
        ),
        ("[" * 100_000, "JSON"),
        (json.dumps(GOOD), "id 'a' appears twice, first on line 1"),
        *(({"id": name}, "id ") for name in ("../b", "a/b", ".b", "a b", "é", "a\n", "a" * 101)),
        ({"id": 3}, "'id'"),
        ({"prompt": "a \ud83d cat"}, '"\\ud83d"'),
        ({"metadata": {"\udc00": 1}}, '"\\udc00"'),
        ({"prompt": "  "}, "'prompt'"),
        ({"metadata": []}, "'metadata'"),
        ({"task": "sing"}, "task 'sing' is not one of geneval, ocr, preference"),
        ({"spans": []}, "unknown key 'spans'"),
        ({"core": 3}, "'core'"),
        ({"core": [{"start": 0, "end": 1}]}, "core span: key 'kind' is missing"),
        ({"core": [3]}, "core span 3"),
        ({"core": [{"start": 0, "end": 99, "kind": "text"}]}, "0 to 99"),
        ({"core": [{"start": 2, "end": 2, "kind": "text"}]}, "2 to 2"),
        ({"core": [{"start": True, "end": 2, "kind": "text"}]}, "True to 2"),
        ({"core": [{"start": 0, "end": 2, "kind": "noun"}]}, "core kind 'noun'"),
        ({"core": [{"start": 0, "end": 2, "kind": "text", "clause": -1}]}, "core clause -1"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, second, told):
    line = second if isinstance(second, str) else json.dumps(GOOD | {"id": "b"} | second)
    message = refused(tmp_path / "set.jsonl", json.dumps(GOOD), line)
    assert message.startswith(f"{tmp_path}/set.jsonl:2: ") and told in message


def geneval(*include, **more) -> tuple[str, dict]:
    return "geneval", {"tag": "colors", "include": list(include), **more}


@pytest.mark.parametrize(
    ("task", "metadata", "told"),
    [
        *(("geneval", {"tag": "colors", "include": x}, "'include'") for x in (5, [], {}, "x")),
        *((*geneval(x), "include[0] ") for x in ("x", 5, None, [])),
        (*geneval({}), "include[0]: key 'class'"),
        *(
            (*geneval(CAT, CAT | change), f"include[1]: {told}")
            for change, told in (
                ({"class": 3}, "class 3"),
                ({"class": ["cat"]}, "class ['cat']"),
                ({"class": " "}, "class ' '"),
                ({"count": "1"}, "count '1'"),
                ({"count": 0}, "count 0"),
                ({"count": True}, "count True"),
                ({"position": 5}, "position 5"),
                ({"position": []}, "position []"),
                ({"position": [["above"], 0]}, "position [['above'], 0]"),
                ({"position": ["above", 1]}, "position refers to clause 1"),
                ({"color": 4}, "color 4 is not one of red"),
                ({"colour": "red"}, "unknown key 'colour'"),
            )
        ),
        (*geneval(CAT, exclude=5), "'exclude'"),
        (*geneval(CAT, exclude=[3]), "exclude[0]"),
        ("geneval", {}, "key 'include' is missing"),
        ("geneval", {"include": [CAT]}, "key 'tag' is missing"),
        ("geneval", {"include": [CAT], "tag": ["colors"]}, "tag ['colors']"),
        ("preference", {"include": [{}]}, "include[0]: key 'class'"),
        ("ocr", {}, "key 'text' is missing"),
        ("ocr", {"text": 5}, "text 5"),
        ("ocr", {"text": ""}, "text ''"),
    ],
)
def test_metadata_that_no_stage_can_use_are_named(tmp_path, task, metadata, told):
    line = json.dumps(GOOD | {"task": task, "metadata": metadata})
    message = refused(tmp_path / "set.jsonl", line)
    assert message.startswith(f"{tmp_path}/set.jsonl:1: metadata: ") and told in message


def test_metadata_of_any_class_are_taken_as_they_are(tmp_path):
    include = [CAT, {"class": "axolotl", "count": 2, "position": ["above", 0]}]
    metadata = {"tag": "position", "include": include}
    path = tmp_path / "set.jsonl"
    for task, kept in (
        ("geneval", metadata),
        *(("preference", m) for m in (metadata, {}, {"a": 1})),
    ):
        path.write_text(json.dumps(GOOD | {"task": task, "metadata": kept}))
        assert read_records(path)[0].metadata == kept


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(StarError, match=r"none\.jsonl: cannot be read \(No such file"):
        read_records(tmp_path / "none.jsonl")
    assert refused(tmp_path / "empty.jsonl", "", " ").startswith(f"{tmp_path}/empty.jsonl: ")
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
    last = tmp_path / "preference" / "test.jsonl"
    for records, told in (
        (sets["ocr"], "record ocr-0 is one of ocr; "),
        ([PromptRecord("ocr-1", "preference", "HI", {})], "record ocr-1 .*/ocr/test.jsonl"),
    ):
        write_records(last, records)
        with pytest.raises(StarError, match=f"{last}: {told}"):
            read_benchmarks(tmp_path)
