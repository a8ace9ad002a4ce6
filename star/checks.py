"""What a stage checks before it opens a model: it should not take a GPU to learn of a folder or of a missing model."""

import tempfile
from collections.abc import Collection
from pathlib import Path

from star.errors import StarError
from star.params import Params
from star.pipeline import find_pipeline
from star.rewards.factory import find_models


def check_folders(params: Params, work: Path, output: Path) -> None:
    """Refuse folders that cannot be written, in the order in which the stage would come to them.

    Raises:
        StarError: names the folder and what it is for.
    """
    if params.model.prompt_cache is not None:
        check_writable(Path(params.model.prompt_cache), "model.prompt_cache")
    check_writable(work, "the folder of states")
    check_writable(output, "the output folder")


def check_writable(folder: Path, name: str) -> None:
    """Refuse a folder in which nothing can be made, or that cannot be made itself; leaves nothing behind.

    Raises:
        StarError: begins with ``name``.
    """
    lineage = (folder.absolute(), *folder.absolute().parents)
    try:
        there = next(path for path in lineage if path.is_symlink() or path.exists())
        with tempfile.TemporaryDirectory(dir=there, prefix=".star-"):
            pass
    except OSError as error:
        raise StarError(f"{name} {folder}: cannot be written ({error.strerror}); give another folder") from error


def find_all_models(params: Params, tasks: Collection[str]) -> Path:
    """Have the base model and what judges the tasks on this machine, and return the directory of the former.

    Raises:
        StarError: what `star.pipeline` and `star.rewards.factory` refuse.
    """
    folder = find_pipeline(params.model)
    find_models(tasks, params.rewards)
    return folder
