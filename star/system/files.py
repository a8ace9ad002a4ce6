"""Files that are never seen half written: a power cut leaves the old one or the new one."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from star.system.errors import StarError, writing


def check_writable(folder: Path, name: str) -> None:
    """Refuse a folder that cannot be made, or in which nothing can; leaves nothing behind.

    Raises:
        StarError: begins with ``name``.
    """
    lineage = (folder.absolute(), *folder.absolute().parents)
    try:
        there = next(path for path in lineage if path.is_symlink() or path.exists())
        with tempfile.TemporaryDirectory(dir=there, prefix=".star-"):
            pass
    except OSError as error:
        raise StarError(
            f"{name} {folder}: cannot be written ({error.strerror}); give another folder"
        ) from error


def write_text_atomic(path: Path, text: str | Iterable[str]) -> None:
    """Write a text, or its pieces, under a temporary name; flush it; rename it into place.

    If anything fails, the temporary file is removed.

    Raises:
        StarError: see `star.system.errors.writing`.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.writelines([text] if isinstance(text, str) else text)
            replace_durably(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def replace_durably(temporary: Path, path: Path) -> None:
    """Flush a whole file to the disk, rename it, and flush the name too."""
    _flush(temporary)
    os.replace(temporary, path)
    _flush(path.parent)


def sort_header(path: Path) -> None:
    """Sort the names in a safetensors file's header, whose order its library changes each time."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    names = json.loads(content[8:start])
    header = json.dumps(names, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of eight
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(len(header).to_bytes(8, "little") + header + content[start:])
    replace_durably(temporary, path)


def remove(folder: Path) -> None:
    """Delete a folder, if there, under another name: none is half deleted under its own."""
    if not folder.exists():
        return
    doomed = folder.with_name(folder.name + ".deleted")
    shutil.rmtree(doomed, ignore_errors=True)  # of a call that was killed
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


def flush_tree(folder: Path) -> None:
    """Flush a folder and all below it to the disk."""
    for path in (*folder.rglob("*"), folder):
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
