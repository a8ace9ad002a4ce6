"""The second reader: what it reads, without a network and without a word, and that no training
knows it."""

import importlib.metadata
import re
import socket
from collections.abc import Sequence
from pathlib import Path

import grimp
import numpy as np
import pytest
import requests
from PIL import Image, ImageDraw, ImageFont

from star.evaluation.held_out_reader import ppocrv6, read_again
from star.miniature.world import BACKGROUND, LETTERS, SIZE, Scene, render
from star.prompts.records import PromptRecord
from star.rewards.base import RewardError
from star.rewards.reading import ReadingPool, TextReader

ROOT = Path(__file__).parents[2]


def record(text: str | None, number: int = 0) -> PromptRecord:
    metadata = {} if text is None else {"text": text}
    return PromptRecord(f"ocr-test-{number:05d}", "ocr", f'a sign that says "{text}"', metadata)


def records(words: list[str]) -> list[PromptRecord]:
    return [record(word, number) for number, word in enumerate(words)]


def random_words(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(LETTERS), size=rng.integers(2, 6))) for _ in range(count)]


def noisy(images: np.ndarray) -> np.ndarray:
    return np.clip(images + np.random.default_rng(0).normal(0, 12, images.shape), 0, 255).astype(
        np.uint8
    )


def poster(words: str, side: int) -> np.ndarray:
    """Words across the middle of a two-coloured image."""
    image = Image.new("RGB", (side, side), (70, 110, 160))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, side // 2, side, side), (190, 170, 120))
    font = ImageFont.load_default(side / 12)
    draw.text(
        (side / 2, side / 2),
        words,
        "white",
        font=font,
        anchor="mm",
        stroke_width=2,
        stroke_fill="black",
    )
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
    blank = np.full((SIZE, SIZE, 3), BACKGROUND, np.uint8)
    found = read_again(
        "ppocrv6", [render(Scene(text="STAR")), blank], records(["STAR", "CAT"]), workers=0
    )
    assert [(reading.text, reading.reward) for reading in found] == [("STAR", 1.0), ("", 0.0)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("reader", ["ppocrv6", "template"])
def test_signs_of_the_miniature(reader: str) -> None:
    words = random_words(60, 5)
    images = np.stack([render(Scene(text=word)) for word in words])
    for batch in (images, noisy(images)):
        rewards = np.array(
            [reading.reward for reading in read_again(reader, batch, records(words), 0)]
        )
        assert (rewards == 1).mean() >= 0.95 and rewards.mean() >= 0.98


@pytest.mark.parametrize("side", [128, 512, 1024])
def test_images_of_any_size(side: int) -> None:
    words = ["OPEN DAILY", "Fresh Bread", "Exit 42"]
    found = read_again("ppocrv6", [poster(word, side) for word in words], records(words), 0)
    assert [reading.reward for reading in found] == [1.0] * 3


@pytest.mark.parametrize("reader", ["ppocrv6", "template"])
def test_extra_letters_cost_whatever_the_rewards_rule(reader: str) -> None:
    images = [render(Scene(text=word)) for word in ("LOVEE", "LOVE", "DOG")]
    found = read_again(reader, images, records(["LOVE", "LOVE", "CAT"]), 0)
    assert [reading.reward for reading in found] == [0.75, 1.0, 0.0]


def test_a_reading_depends_neither_on_neighbours_nor_on_workers() -> None:
    words = random_words(21, 6)  # several chunks
    images = noisy(np.stack([render(Scene(text=word)) for word in words]))
    together = read_again("ppocrv6", list(images), records(words), workers=2)
    assert together == read_again("ppocrv6", images, records(words), workers=0)
    for index in (0, 13, 20):
        alone = read_again("ppocrv6", images[index : index + 1], [record(words[index])], workers=0)
        assert alone == together[index : index + 1]


def test_the_timeout_is_that_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pools, read = [], []

    class Watched(ReadingPool):
        def __init__(self, reader: TextReader, workers: int, timeout: float) -> None:
            pools.append(timeout)
            super().__init__(reader, workers, timeout)

        def read(self, images: Sequence[np.ndarray], ids: list[str]) -> list[str]:
            read.append(ids)
            return super().read(images, ids)

    monkeypatch.setattr("star.evaluation.held_out_reader.ReadingPool", Watched)
    asked = records(["CAT", "DOG", "CAT", "DOG", "CAT"])
    found = read_again(
        "ppocrv6", [render(Scene(text=r.metadata["text"])) for r in asked], asked, 0, 30.0, batch=2
    )
    ids = [r.id for r in asked]
    assert pools == [30.0] and read == [ids[:2], ids[2:4], ids[4:]]
    assert [reading.reward for reading in found] == [1.0] * 5


def test_no_images_no_readings_and_no_other_reader() -> None:
    assert read_again("ppocrv6", [], [], workers=2) == []
    with pytest.raises(ValueError, match="no second reader 'none'"):
        read_again("none", [render(Scene(text="CAT"))], records(["CAT"]), workers=0)


@pytest.mark.parametrize(
    ("reader", "image", "workers"),
    [
        ("ppocrv6", np.zeros((0, 64, 3), np.uint8), 0),
        ("ppocrv6", np.zeros((0, 64, 3), np.uint8), 1),
        ("template", np.zeros((512, 512, 3), np.uint8), 0),
    ],
)
def test_a_failure_names_the_record_and_is_never_a_zero(
    reader: str, image: np.ndarray, workers: int
) -> None:
    with pytest.raises(RewardError, match="^ocr-test-00007: [^\n]+$"):
        read_again(reader, [image], [record("STAR", 7)], workers)
    with pytest.raises(RewardError, match="ocr-test-00041: no text"):
        read_again(reader, [image], [record(None, 41)], workers)


def test_a_missing_model_is_an_error_and_not_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("rapidocr.__file__", str(tmp_path / "__init__.py"))
    ppocrv6.cache_clear()
    try:
        with pytest.raises(RewardError, match="ocr-test-00000: .*PP-OCRv6_det_small.onnx"):
            read_again("ppocrv6", [render(Scene(text="STAR"))], records(["STAR"]), 0)
    finally:
        ppocrv6.cache_clear()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["det", "rec"])
def test_its_networks_are_not_the_rewards(part: str) -> None:
    own, reward = (
        {
            file.hash.value
            for file in importlib.metadata.files(name) or ()
            if re.search(rf"_{part}_.*onnx$", file.name)
        }
        for name in ("rapidocr", "rapidocr-onnxruntime")
    )
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
    pinned = dict(
        re.findall(r"^(opencv-python[a-z-]*)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    )
    assert (
        set(pinned) == {"opencv-python", "opencv-python-headless"}
        and len(set(pinned.values())) == 1
    )
    assert {name: importlib.metadata.version(name) for name in pinned} == pinned


def test_images_below_the_side_it_reads_at_are_enlarged() -> None:
    image = Image.fromarray(render(Scene(text="CAT"))).resize((48, 48), Image.Resampling.BICUBIC)
    assert read_again("ppocrv6", [np.asarray(image)], [record("CAT")], 0)[0].reward == 1.0
