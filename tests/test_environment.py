"""What is installed: consistent, pinned, and under licences that are listed."""

import csv
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from docs.list_licences import licence, pinned

ROOT = Path(__file__).resolve().parents[1]
LISTED = dict(
    csv.reader((ROOT / "docs" / "licences.csv").read_text(encoding="utf-8").splitlines()[1:])
)


def test_the_installed_packages_agree_with_each_other():
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout


def test_every_pin_is_exact_and_is_what_is_installed():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        name, equals, version = line.partition("==")
        if line.startswith("#"):
            continue
        assert equals and version and "*" not in version, line
        assert distribution(name).version.partition("+")[0] == version, line


def test_every_pinned_package_has_its_licence_in_the_list():
    assert list(LISTED) == pinned()
    assert all(LISTED.values()) and "?" not in LISTED.values()


@pytest.mark.parametrize("package", pinned())
def test_the_list_says_what_the_package_says(package):
    assert licence(package) == LISTED[package]
