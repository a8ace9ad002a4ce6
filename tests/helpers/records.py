"""Prompt records for tests."""

from star.prompts.core_content import with_core
from star.prompts.records import CoreSpan, PromptRecord


def record_of(prompt: str, metadata: dict | None = None, task: str = "preference") -> PromptRecord:
    """Return a record whose core is not filled."""
    return PromptRecord(id="some-00001", task=task, prompt=prompt, metadata=metadata or {})


def cored(record: PromptRecord) -> PromptRecord:
    """Return the record with its core filled."""
    return with_core([record])[0]


def sign_of(word: str) -> PromptRecord:
    """Return a record of the OCR task with its core filled."""
    return cored(record_of(f'a sign that says "{word}"', {"text": word}, "ocr"))


def text_of(record: PromptRecord, span: CoreSpan) -> str:
    """Return the characters of a span."""
    return record.prompt[span.start : span.end]
