"""What the tests of the workflow share: a folder to plan in."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.jobs import Job, parse_jobs


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    """A working directory with the default parameters and stand-ins for the model directories."""
    shutil.copy(root / "params.yaml", tmp_path)
    for file in ("miniature/model_index.json", "miniature-preference/config.json"):
        (tmp_path / "models" / file).parent.mkdir(parents=True)
        (tmp_path / "models" / file).write_text("{}", encoding="utf-8")
    return tmp_path


@pytest.fixture
def plan(
    folder: Path, snakemake: Callable[..., subprocess.CompletedProcess[str]]
) -> Callable[..., list[Job]]:
    """Return the jobs that a dry run in the folder shows."""

    def plan(*arguments: str) -> list[Job]:
        run = snakemake("--dry-run", "--printshellcmds", *arguments)
        assert run.returncode == 0, run.stdout + run.stderr
        return parse_jobs(run.stdout + run.stderr)

    return plan
