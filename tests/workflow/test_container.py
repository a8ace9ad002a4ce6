"""The container's definition, as far as it can be checked without an engine: its files install the
whole package."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEFINITION = ROOT / "workflow/container/star.def"


def read_section(name: str) -> list[str]:
    """Lines of a section of the definition, stripped."""
    (body,) = re.findall(
        rf"^%{name}\n((?:[ \t]+.*\n)+)", DEFINITION.read_text(encoding="utf-8"), re.MULTILINE
    )
    return [line.strip() for line in body.splitlines()]


@pytest.mark.slow
def test_its_own_files_and_its_pip_command_install_every_file_of_the_package(tmp_path):
    image = tmp_path / "image"
    for source, target in map(str.split, read_section("files")):
        copy = image / target.removeprefix("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / source, copy)
    (command,) = (line for line in read_section("post") if line.startswith("pip install"))
    words = [
        str(image / word[1:]) if word.startswith("/opt") else word for word in shlex.split(command)
    ]
    site = tmp_path / "site"
    # Dependencies are left out: they are those of this environment, which `make install` made by
    # the same constraints.
    install = [sys.executable, "-m", *words, "--quiet", "--no-deps", "--target", str(site)]
    run = subprocess.run(install, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    tracked = subprocess.run(
        ["git", "ls-files", "star"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    missing = [name for name in tracked.stdout.split() if not (site / name).is_file()]
    assert not missing
    assert (site / "bin/star").is_file()


def test_it_installs_by_the_constraints_what_make_installs():
    (command,) = (line for line in read_section("post") if line.startswith("pip install"))
    assert "--constraint /opt/star/constraints.txt" in command
    base = re.search(
        r"^From: python:(\d+)\.(\d+)-", DEFINITION.read_text(encoding="utf-8"), re.MULTILINE
    )
    required = re.search(
        r'^requires-python = ">=(\d+)\.(\d+)', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert base and required and [*map(int, base.groups())] >= [*map(int, required.groups())]
