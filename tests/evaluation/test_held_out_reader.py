"""The second reader: what it reads, without a network and a word, and that no training knows it."""

import importlib.metadata
import re
import socket
from pathlib import Path

import grimp
import numpy as np
import pytest
import requests
from PIL import Image, ImageDraw, ImageFont

from star.evaluation.held_out_reader import ppocrv6, read_again
from star.miniature.world import BACKGROUND, LETTERS, SIZE
from star.rewards.base import RewardError
from tests.helpers.rewards import noisy, ocr_record, signs

ROOT = Path(__file__).parents[2]
READERS = pytest.mark.parametrize("reader", ["ppocrv6", "template"])


def random_words(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(LETTERS), size=rng.integers(2, 6))) for _ in range(count)]


def poster(words: str, side: int) -> np.ndarray:
    """Words across the middle of a two-coloured image."""
    image = Image.new("RGB", (side, side), (70, 110, 160))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, side // 2, side, side), (190, 170, 120))
    font, edge = ImageFont.load_default(side / 12), {"stroke_width": 2, "stroke_fill": "black"}
    draw.text((side / 2, side / 2), words, "white", font=font, anchor="mm", **edge)
    return np.asarray(image)


def test_it_opens_without_a_network_and_reads_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("the network is blocked")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    with pytest.raises((OSError, requests.RequestException), match="blocked"):
        requests.get("http://127.0.0.1:1", timeout=1)
    ppocrv6.cache_clear()  # another test may have opened it
    images, records = signs("STAR", "CAT")
    images[1] = BACKGROUND
    found = read_again("ppocrv6", images, records, workers=0)
    assert [(reading.text, reading.reward) for reading in found] == [("STAR", 1.0), ("", 0.0)]
    assert capfd.readouterr() == ("", "")


@READERS
def test_signs_of_the_miniature(reader: str) -> None:
    images, records = signs(*random_words(60, 5))
    for batch in (images, noisy(images, 12.0)):
        found = read_again(reader, batch, records, 0)
        rewards = np.array([reading.reward for reading in found])
        assert (rewards == 1).mean() >= 0.95 and rewards.mean() >= 0.98


@pytest.mark.parametrize("side", [128, 512, 1024])
def test_images_of_any_size(side: int) -> None:
    words = ["OPEN DAILY", "Fresh Bread", "Exit 42"]
    images = [poster(word, side) for word in words]
    found = read_again("ppocrv6", images, [ocr_record(word) for word in words], 0)
    assert [reading.reward for reading in found] == [1.0] * 3


def test_images_below_the_side_it_reads_at_are_enlarged() -> None:
    images, records = signs("CAT")
    small = Image.fromarray(images[0]).resize((48, 48), Image.Resampling.BICUBIC)
    assert read_again("ppocrv6", [np.asarray(small)], records, 0)[0].reward == 1.0


@READERS
def test_extra_letters_cost_whatever_the_rewards_rule(reader: str) -> None:
    records = [ocr_record(word) for word in ("LOVE", "LOVE", "CAT")]
    found = read_again(reader, signs("LOVEE", "LOVE", "DOG")[0], records, 0)
    assert [reading.reward for reading in found] == [0.75, 1.0, 0.0]


@pytest.mark.slow
def test_a_reading_depends_neither_on_neighbours_nor_on_workers() -> None:
    images, records = signs(*random_words(21, 6))  # several chunks
    images = noisy(images, 12.0)
    together = read_again("ppocrv6", list(images), records, workers=2)
    assert together == read_again("ppocrv6", images, records, workers=0)
    for index in (0, 13, 20):
        part = slice(index, index + 1)
        assert read_again("ppocrv6", images[part], records[part], workers=0) == together[part]


def test_no_images_no_readings_and_no_other_reader() -> None:
    assert read_again("ppocrv6", [], [], workers=2) == []
    with pytest.raises(ValueError, match="'none'"):
        read_again("none", *signs("CAT"), workers=0)


@pytest.mark.parametrize(
    ("reader", "side", "workers"), [("ppocrv6", 0, 0), ("ppocrv6", 0, 1), ("template", 512, 0)]
)
def test_a_failure_names_the_record_and_is_never_a_zero(
    reader: str, side: int, workers: int
) -> None:
    image = np.zeros((side, SIZE, 3), np.uint8)
    for text in ("STAR", None):
        with pytest.raises(RewardError, match="^ocr-test-00007: [^\n]+$"):
            read_again(reader, [image], [ocr_record(text, 7)], workers)


def test_a_missing_model_is_an_error_and_not_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("rapidocr.__file__", str(tmp_path / "__init__.py"))
    ppocrv6.cache_clear()
    try:
        with pytest.raises(RewardError, match="^ocr-test-00000: .*PP-OCRv6_det_small.onnx"):
            read_again("ppocrv6", *signs("STAR"), 0)
    finally:
        ppocrv6.cache_clear()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["det", "rec"])
def test_its_networks_are_not_the_rewards(part: str) -> None:
    def networks(package: str) -> set[str]:
        files = importlib.metadata.files(package) or ()
        return {file.hash.value for file in files if re.search(rf"_{part}_.*onnx$", file.name)}

    own, reward = networks("rapidocr"), networks("rapidocr-onnxruntime")
    assert len(own) == len(reward) == 1 and own != reward


def test_no_training_runs_its_code() -> None:
    graph = grimp.build_graph("star", cache_dir=None)
    evaluated, trained = (
        graph.find_upstream_modules(entry)
        for entry in ("star.evaluation.evaluate", "star.training.loop")
    )
    assert {"star.evaluation.held_out_reader", "star.miniature.reader"} <= evaluated - trained


def test_both_builds_of_opencv_are_pinned_to_one_version() -> None:
    """They write into one folder, so a mixture of versions would be neither."""
    constraints = (ROOT / "constraints.txt").read_text()
    pinned = dict(re.findall(r"^(opencv-python[a-z-]*)==(\S+)$", constraints, re.M))
    assert set(pinned) == {"opencv-python", "opencv-python-headless"}
    assert len(set(pinned.values())) == 1
    assert {name: importlib.metadata.version(name) for name in pinned} == pinned
