"""What is installed: consistent, pinned, and under licences that are listed."""

import csv
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from docs.list_licences import licence, pinned

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_installed_packages_agree_with_each_other() -> None:
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout


def test_every_pin_is_exact_and_is_what_is_installed() -> None:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, equals, version = line.partition("==")
        if not line.startswith("#"):
            assert equals and version and "*" not in version, line
            assert distribution(name).version.partition("+")[0] == version, line


def test_the_list_of_licences_has_what_every_pinned_package_says() -> None:
    lines = (ROOT / "docs/licences.csv").read_text(encoding="utf-8").splitlines()
    listed = [tuple(row) for row in csv.reader(lines[1:])]
    assert listed == [(package, licence(package)) for package in pinned()]
