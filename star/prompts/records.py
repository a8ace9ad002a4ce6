"""Prompt records: the JSON lines that every stage passes on.

One line is one prompt: ``{"core"?, "id", "metadata", "prompt", "task"}``, UTF-8, sorted keys, LF.
Every error names the file and the line, because these files are the ones a user edits or brings
along."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from star.config.params import SPANS, TASKS
from star.prompts.geneval import TAGS, check_clauses, check_keys, is_index
from star.system.errors import StarError
from star.system.files import write_text_atomic

ID = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"


@dataclass(frozen=True)
class CoreSpan:
    """Core content: characters ``start`` to ``end`` (exclusive) of a prompt, one of `SPANS`.

    ``clause`` is the index of the GenEval ``include`` clause that the span belongs to, None where
    there is none."""

    start: int
    end: int
    kind: str
    clause: int | None = None


@dataclass(frozen=True)
class PromptRecord:
    """One prompt of one task.

    ``metadata`` is GenEval's line (``tag``, ``include``, ``exclude``?, ``prompt``?), ``{"text":
    WORD}`` for OCR (a list where there are several), either of the two or nothing for preference.
    ``core`` is None until the core stage has filled it."""

    id: str
    task: str
    prompt: str
    metadata: dict
    core: tuple[CoreSpan, ...] | None = None


def read_records(path: Path | str) -> list[PromptRecord]:
    """Read a file of prompt records.

    Raises:
        StarError: missing, empty or not UTF-8 file, malformed JSON, a missing key or a wrong value,
            an id that appears twice; the message names the file and the line.
    """
    records: list[PromptRecord] = []
    seen: dict[str, int] = {}
    for number, line in read_lines(path):
        record = _parse_record(line, f"{path}:{number}")
        if (first := seen.setdefault(record.id, number)) != number:
            twice = f"id {record.id!r} appears twice, first on line {first}"
            raise StarError(f"{path}:{number}: {twice}")
        records.append(record)
    return records


def read_benchmarks(folder: Path) -> dict[str, list[PromptRecord]]:
    """Read the test records of every task, from ``<task>/test.jsonl``.

    Raises:
        StarError: what `read_records` refuses; a record of another task, or one whose id another
            task's has: ids name the images of all. The message names the file and the record.
    """
    found: dict[str, list[PromptRecord]] = {}
    files: dict[str, Path] = {}
    for task in TASKS:
        file = folder / task / "test.jsonl"
        found[task] = read_records(file)
        for record in found[task]:
            where = f"{file}: record {record.id}"
            if record.task != task:
                raise StarError(f"{where} is one of {record.task}; give the prompts of {task}")
            if (first := files.setdefault(record.id, file)) != file:
                raise StarError(f"{where} has the id of one in {first}; rename one of them")
    return found


def texts_of(metadata: dict) -> list[str]:
    """Return the texts to be drawn, of OCR metadata; none where one of them is no text."""
    value = metadata.get("text", [])
    texts = value if isinstance(value, list) else [value]
    return texts if all(isinstance(text, str) and text.strip() for text in texts) else []


def write_records(path: Path | str, records: Iterable[PromptRecord]) -> None:
    """Write records as JSON lines; the old file stays whole until the new one is on the disk."""
    write_text_atomic(Path(path), map(_as_line, records))


def read_lines(path: Path | str) -> list[tuple[int, str]]:
    """Return the non-empty lines of a text file with their numbers from 1.

    Only LF and CRLF end a line.

    Raises:
        StarError: the file cannot be read, is not UTF-8 or has no such line.
    """
    try:
        data = Path(path).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise StarError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise StarError(f"{path}:{number}: not UTF-8 text; convert the file to UTF-8") from error
    stripped = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    lines = [(number, line) for number, line in stripped if line]
    if not lines:
        raise StarError(f"{path}: the file is empty; it needs one prompt per line")
    return lines


def parse_object(line: str, where: str) -> dict:
    """Return the JSON object of a line.

    Raises:
        StarError: it is none, or has half a character; begins with ``where``.
    """
    try:
        value = json.loads(line)
        if "\\ud" in line.lower():  # an escape may be half a surrogate pair, which no file can hold
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"{json.dumps(error.object[error.start])} is half a surrogate pair and no character"
        raise StarError(f"{where}: {half}; remove it") from error
    except (ValueError, RecursionError) as error:
        raise StarError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise StarError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _as_line(record: PromptRecord) -> str:
    line = {key: value for key, value in vars(record).items() if value is not None}
    return json.dumps(line, sort_keys=True, ensure_ascii=False, default=vars) + "\n"


def _parse_record(line: str, where: str) -> PromptRecord:
    value = parse_object(line, where)
    check_keys(value, {"id", "metadata", "prompt", "task"}, {"core"}, where)
    for key, kind in (("id", str), ("task", str), ("prompt", str), ("metadata", dict)):
        if not isinstance(value[key], kind) or (kind is str and not value[key].strip()):
            wanted = "non-empty string" if kind is str else "JSON object"
            raise StarError(f"{where}: {key!r} must be a {wanted}")
    if not re.fullmatch(ID, value["id"]):
        allowed = "names files: letters, digits, '.', '_' and '-', at most 100"
        raise StarError(f"{where}: id {value['id']!r} {allowed}")
    if value["task"] not in TASKS:
        raise StarError(f"{where}: task {value['task']!r} is not one of {', '.join(TASKS)}")
    _check_metadata(value["metadata"], value["task"], f"{where}: metadata")
    core = None if value.get("core") is None else _parse_core(value["core"], value["prompt"], where)
    return PromptRecord(**value | {"core": core})


def _check_metadata(metadata: dict, task: str, where: str) -> None:
    for key in {"geneval": ("include", "tag"), "ocr": ("text",)}.get(task, ()):
        if key not in metadata:
            raise StarError(f"{where}: key {key!r} is missing; a record of {task} needs it")
    if task == "geneval" and metadata["tag"] not in TAGS:
        raise StarError(f"{where}: tag {metadata['tag']!r} is not one of {', '.join(TAGS)}")
    if task == "ocr" and not texts_of(metadata):
        wanted = "must be the word to be drawn, or a list of several"
        raise StarError(f"{where}: text {metadata['text']!r} {wanted}")
    if "include" in metadata:
        check_clauses(metadata, None, where)


def _parse_core(values: object, prompt: str, where: str) -> tuple[CoreSpan, ...]:
    if not isinstance(values, list):
        raise StarError(f"{where}: 'core' must be a list of spans")
    spans = []
    for value in values:
        if not isinstance(value, dict):
            raise StarError(f"{where}: core span {value!r} must be a JSON object")
        check_keys(value, {"start", "end", "kind"}, {"clause"}, f"{where}: core span")
        span = CoreSpan(**value)
        start, end, length = span.start, span.end, len(prompt)
        if not (is_index(start) and is_index(end) and start < end <= length):
            outside = f"core span {start!r} to {end!r} does not lie in the prompt (0 to {length})"
            raise StarError(f"{where}: {outside}")
        if span.kind not in SPANS:
            raise StarError(f"{where}: core kind {span.kind!r} is not one of {', '.join(SPANS)}")
        if span.clause is not None and not is_index(span.clause):
            raise StarError(f"{where}: core clause {span.clause!r} must be an index or null")
        spans.append(span)
    return tuple(spans)
