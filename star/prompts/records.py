"""Prompt records: the JSON lines that every stage passes on.

One line is one prompt: ``{"core"?, "id", "metadata", "prompt", "task"}``, UTF-8, sorted keys, LF.
Every error names the file and the line, because these files are the ones a user edits or brings
along."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from star.config.params import TASKS
from star.prompts.geneval import TAGS, check_clauses, is_index
from star.system.errors import StarError
from star.system.files import write_text_atomic

ID = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
KINDS = ("object", "count", "color", "relation", "text", "carrier", "subject", "content")


@dataclass(frozen=True)
class CoreSpan:
    """Core content: characters ``start`` to ``end`` (exclusive) of a prompt, one of `KINDS`.

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
    WORD}`` for OCR, either of the two or nothing for preference. ``core`` is None until the core
    stage has filled it."""

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
        if record.id in seen:
            raise StarError(
                f"{path}:{number}: id {record.id!r} appears twice, first on line {seen[record.id]}"
            )
        seen[record.id] = number
        records.append(record)
    return records


def read_benchmarks(folder: Path) -> dict[str, list[PromptRecord]]:
    """The test records of every task, from ``<task>/test.jsonl``.

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
            if record.task != task:
                raise StarError(
                    f"{file}: record {record.id} is one of {record.task}; give the prompts of {task}"
                )
            if (first := files.setdefault(record.id, file)) != file:
                raise StarError(
                    f"{file}: record {record.id} has the id of one in {first}; rename one of them"
                )
    return found


def write_records(path: Path | str, records: Iterable[PromptRecord]) -> None:
    """Write records as JSON lines, atomically: the old file stays whole until the new one is on the
    disk."""
    write_text_atomic(Path(path), map(_as_line, records))


def read_lines(path: Path | str) -> list[tuple[int, str]]:
    """The non-blank lines of a text file with their numbers from 1; only LF and CRLF end a line.

    Raises:
        StarError: the file cannot be read, is not UTF-8 or has no such line.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise StarError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise StarError(f"{path}:{number}: not UTF-8 text; convert the file to UTF-8") from error
    lines = [
        (number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()
    ]
    if not lines:
        raise StarError(f"{path}: the file is empty; it needs one prompt a line")
    return lines


def parse_object(line: str, where: str) -> dict:
    """A line that must be one JSON object of characters that UTF-8 has; `StarError` beginning with
    ``where`` if not."""
    try:
        value = json.loads(line)
        if "\\ud" in line.lower():  # an escape may be half a surrogate pair, which no file can hold
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = json.dumps(error.object[error.start])
        raise StarError(
            f"{where}: {half} is half a surrogate pair and no character; remove it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise StarError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise StarError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _as_line(record: PromptRecord) -> str:
    line = dict(vars(record))
    core = line.pop("core")
    if core is not None:
        line["core"] = [vars(span) for span in core]
    return json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n"


def _parse_record(line: str, where: str) -> PromptRecord:
    value = parse_object(line, where)
    for key, kind in (("id", str), ("task", str), ("prompt", str), ("metadata", dict)):
        if key not in value:
            raise StarError(f"{where}: key {key!r} is missing")
        if not isinstance(value[key], kind) or (kind is str and not value[key].strip()):
            raise StarError(
                f"{where}: {key!r} must be a non-empty {'string' if kind is str else 'object'}"
            )
    if not re.fullmatch(ID, value["id"]):
        raise StarError(
            f"{where}: id {value['id']!r} names files: letters, digits, '.', '_' and '-', at most 100"
        )
    unknown = sorted(set(value) - {"id", "task", "prompt", "metadata", "core"})
    if unknown:
        raise StarError(f"{where}: unknown key {unknown[0]!r}")
    if value["task"] not in TASKS:
        raise StarError(f"{where}: task {value['task']!r} is not one of {', '.join(TASKS)}")
    _check_metadata(value["metadata"], value["task"], where)
    core = None if value.get("core") is None else _parse_core(value["core"], value["prompt"], where)
    return PromptRecord(value["id"], value["task"], value["prompt"], value["metadata"], core)


def _check_metadata(metadata: dict, task: str, where: str) -> None:
    where = f"{where}: metadata"
    for key in {"geneval": ("include", "tag"), "ocr": ("text",)}.get(task, ()):
        if key not in metadata:
            raise StarError(
                f"{where}: key {key!r} is missing; a record of the task {task} needs it"
            )
    if task == "geneval" and metadata["tag"] not in TAGS:
        raise StarError(f"{where}: tag {metadata['tag']!r} is not one of {', '.join(TAGS)}")
    if task == "ocr" and not (isinstance(metadata["text"], str) and metadata["text"].strip()):
        raise StarError(f"{where}: text {metadata['text']!r} must be the word to be drawn")
    if "include" in metadata:
        check_clauses(metadata, None, where)


def _parse_core(values: object, prompt: str, where: str) -> tuple[CoreSpan, ...]:
    if not isinstance(values, list):
        raise StarError(f"{where}: 'core' must be a list of spans")
    required, spans = {"start", "end", "kind"}, []
    for value in values:
        if not isinstance(value, dict) or not required <= set(value) <= required | {"clause"}:
            raise StarError(
                f"{where}: a core span is {{start, end, kind, clause}}, found {value!r}"
            )
        start, end, kind, clause = value["start"], value["end"], value["kind"], value.get("clause")
        if not (is_index(start) and is_index(end) and start < end <= len(prompt)):
            raise StarError(
                f"{where}: core span {start!r} to {end!r} does not lie in the prompt (0 to {len(prompt)})"
            )
        if kind not in KINDS:
            raise StarError(f"{where}: core kind {kind!r} is not one of {', '.join(KINDS)}")
        if clause is not None and not is_index(clause):
            raise StarError(f"{where}: core clause {clause!r} must be an index or null")
        spans.append(CoreSpan(start, end, kind, clause))
    return tuple(spans)
