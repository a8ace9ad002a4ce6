"""What several test files share: default parameters, and a folder to run the workflow in."""

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Before torch: threads that spin for each other cost a factor of ten.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

import pytest
import yaml

from star.config.yaml_file import read_values
from star.system.runtime import stay_offline
from tests.helpers import programs
from tests.helpers.runs import run_snakemake

ROOT = Path(__file__).resolve().parents[1]

stay_offline()  # as every stage begins; a test may run without the others

# Fixtures that start what takes seconds: Snakemake, DVC, several processes, a scheduler, a browser.
STARTS = {"snakemake", "project", "launched", "cluster", "disk", "chromium"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `STARTS` slow."""
    for item in items:
        if STARTS & set(item.fixturenames):  # type: ignore[attr-defined]
            item.add_marker("slow")


@pytest.fixture(scope="session")
def chromium() -> str:
    """A browser without a window; where there is none, the test is skipped."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    if reason := programs.missing(["chromium-headless-shell"], "chromium-headless-shell"):
        pytest.skip(reason)
    return "chromium-headless-shell"


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def default_values() -> dict:
    """The content of params.yaml, free to be changed."""
    return read_values(ROOT / "params.yaml")


@pytest.fixture
def write_params(tmp_path: Path) -> Callable[[dict], Path]:
    """Write values as `params.yaml` into the test's folder."""

    def write(values: dict) -> Path:
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def snakemake(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the repository's Snakefile in the test's folder, in the environment of the tests."""

    return partial(run_snakemake, tmp_path)
