"""A bar in a terminal, plain lines elsewhere."""

import io
import sys

import pytest

from star.system import progress
from star.system.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with Progress(total=3, desc="train", unit="epoch") as bar:
        for value in range(3):
            bar.set_postfix(reward=value, refresh=False)
            bar.update()
    said = capsys.readouterr().err
    assert "\r" not in said and "\x1b" not in said
    lines = said.splitlines()
    assert [line.partition(" [")[0] for line in lines[:3]] == [
        "train: 0/3",
        "train: 1/3",
        "train: 2/3",
    ]
    assert lines[-1].startswith("train: 3/3") and "reward=2" in lines[-1]


def test_a_file_gets_few_lines(capsys):
    for _ in Progress(range(10_000), desc="quick"):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" [")[0] for line in lines] == ["quick: 0/10000", "quick: 10000/10000"]


@pytest.mark.parametrize("disable", [False, True])
def test_a_terminal_gets_a_bar(monkeypatch, disable):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for _ in Progress(range(3), desc="train", mininterval=0, disable=disable):
        pass
    assert terminal.getvalue().count("\r") == (0 if disable else 5)
