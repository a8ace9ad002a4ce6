"""The OCR reward: closed forms of the score, the reader on rendered signs, its worker processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.config.params import OcrParams
from star.miniature.world import BACKGROUND, LETTERS, SIZE, render, sample_scene
from star.prompts.words import WORDS as WORDS_OF_PROMPTS
from star.rewards.base import RewardError
from star.rewards.ocr import (
    OcrReward,
    letter_shares,
    recogniser,
    report_unreadable,
    text_reward,
)
from star.rewards.reading import ReadingPool, TextReader
from tests.helpers.rewards import noisy, ocr_record, signs

WORDS = ("STAR", "HELLO", "CAT", "BY", "GRPO")
TEXTS = st.text(alphabet="abcAB ", max_size=8)


def reward_of(workers: int) -> OcrReward:
    return OcrReward(OcrParams(workers=workers, substring=False, read_side=128), 600.0)


@pytest.fixture(scope="module")
def pooled() -> Iterator[OcrReward]:
    reward = reward_of(2)
    yield reward
    reward.close()


@pytest.mark.parametrize(
    ("read", "target", "extra_costs", "substring"),
    [
        ("LOVE", "LOVE", 1.0, 1.0),
        ("l o v e", "LOVE", 1.0, 1.0),
        ("LOVEE", "LOVE", 0.75, 1.0),  # one insertion
        ("LOV", "LOVE", 0.75, 0.75),  # one deletion
        ("LAVE", "LOVE", 0.75, 0.75),  # one substitution
        ("", "LOVE", 0.0, 0.0),
        ("XXLOVEXXX", "LOVE", 0.0, 1.0),  # five insertions, capped at four
        ("QQQQQQQQ", "LOVE", 0.0, 0.0),
        ("big sale", "Big Sale", 1.0, 1.0),
        ("A\tB", "AB", 1.0, 0.5),  # the published rule removes U+0020 alone
        ("A\u00a0B", "A B", 1.0, 0.5),
    ],
)
def test_text_reward_closed_forms(
    read: str, target: str, extra_costs: float, substring: float
) -> None:
    assert text_reward(read, target, substring=False) == extra_costs
    assert text_reward(read, target, substring=True) == substring


@pytest.mark.parametrize(
    ("read", "target", "shares"),
    [
        ("LOVE", "LOVE", [1, 1, 1, 1]),
        ("LAVE", "LOVE", [1, 0, 1, 1]),  # misread
        ("LOE", "LOVE", [1, 1, 0, 1]),  # missing
        ("LOXVE", "LOVE", [1, 1, 0, 1]),  # one too many, before the V
        ("LOVEX", "LOVE", [1, 1, 1, 0]),  # one too many, at the end
        ("big sale", "Big Sale", [1] * 7),  # blanks are no letters
        ("XXLOVEXXX", "LOVE", [0, 0, 0, 0]),  # nothing is left of the reward
    ],
)
def test_letter_shares_by_hand(read: str, target: str, shares: list[float]) -> None:
    assert letter_shares(read, target, substring=False) * len(shares) == pytest.approx(shares)


@given(read=TEXTS, target=TEXTS.filter(lambda text: bool(text.strip())), substring=st.booleans())
def test_letter_shares_add_up_to_the_reward(read: str, target: str, substring: bool) -> None:
    shares = letter_shares(read, target, substring)
    assert len(shares) == sum(not letter.isspace() for letter in target)
    assert shares.sum() == pytest.approx(text_reward(read, target, substring), abs=1e-6)


@pytest.mark.parametrize(
    ("read", "target"),
    [
        ("Don't", "Don’t"),
        ("E=mc2", "E=mc²"),
        ("02", "0₂"),
        ("131/2", "13½"),
        ("50%", "50％"),
        ("Ünal", "U\u0308nal"),
        ("fish", "ﬁsh"),
        ("A-B", "A—B"),
        ("SALE 50% OFF", ["SALE", "50% OFF"]),
        ("50% OFF SALE", ["SALE", "50% OFF"]),
    ],
)
def test_what_looks_alike_is_alike_and_several_texts_have_no_order(
    read: str, target: str | list[str]
) -> None:
    for substring in (False, True):
        for seen in (read, read.replace("-", "–").replace("'", "‘")):
            assert text_reward(seen, target, substring) == 1
            assert letter_shares(seen, target, substring).sum() == pytest.approx(1)


def test_every_one_of_several_texts_counts() -> None:
    both = ["AB", "CDEF"]
    assert text_reward("CDEF", both, substring=False) == pytest.approx(4 / 6)
    assert letter_shares("CDXFAB", both, False) * 6 == pytest.approx([1, 1, 1, 1, 0, 1])
    assert text_reward("AB now CDEF", both, substring=False) == pytest.approx(3 / 6)
    assert text_reward("AB now CDEF", both, substring=True) == 1


def test_characters_that_a_reader_does_not_know_are_told_once() -> None:
    told: list[str] = []
    report_unreadable(
        [ocr_record(text, i) for i, text in enumerate(["½ Ü", "ñ", "5ç"])],
        recogniser(),
        told.append,
    )
    assert len(told) == 1 and "cannot read ç ñ: 2 of 3 prompts, first ocr-test-00001" in told[0]


def test_empty_target_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        text_reward("LOVE", "  ", substring=True)


# ---------------------------------------------------------------- the reader


def test_signs_are_read_in_process_and_by_workers_alike(
    pooled: OcrReward, capfd: pytest.CaptureFixture[str]
) -> None:
    images, records = signs(*WORDS)
    result = pooled.submit(images, records).result()
    assert result.scores.dtype == np.float32 and result.scores.tolist() == [1.0] * len(WORDS)
    assert [detail["read"].upper() for detail in result.details] == list(WORDS)
    in_process = reward_of(0)
    assert in_process.submit(images, records).result().details == result.details
    in_process.close()
    assert capfd.readouterr() == ("", "")


def test_random_words_on_noisy_signs_each_read_on_its_own(pooled: OcrReward) -> None:
    rng = np.random.default_rng(5)
    images, records = signs(
        *("".join(rng.choice(list(LETTERS), rng.integers(2, 6))) for _ in range(60))
    )
    for batch in (images, noisy(images, 8.0)):  # several chunks for each worker
        result = pooled.submit(batch, records).result()
        assert np.mean([detail["exact"] for detail in result.details]) >= 0.95
        assert result.scores.mean() >= 0.98
    for index in (0, 17, 59):
        alone = pooled.submit(batch[index : index + 1], records[index : index + 1]).result()
        assert alone.details == result.details[index : index + 1]


def test_signs_in_a_crowd_are_read_alone(pooled: OcrReward) -> None:
    rng = np.random.default_rng(7)
    records = [ocr_record(str(word), i) for i, word in enumerate(rng.choice(WORDS_OF_PROMPTS, 80))]
    scenes = [sample_scene(record.metadata, rng, "crowded") for record in records]
    images = np.stack([render(scene) for scene in scenes])
    result = pooled.submit(images, records).result()
    assert np.mean([detail["exact"] for detail in result.details]) >= 0.98


def test_wrong_words_and_blank_images(pooled: OcrReward) -> None:
    blank = np.full((1, SIZE, SIZE, 3), BACKGROUND, np.uint8)
    images = np.concatenate([signs("STAR", "CAT")[0], blank])
    records = [ocr_record(word) for word in ("STIR", "DOG", "CAT")]
    result = pooled.submit(images, records).result()
    assert result.scores.tolist() == [0.75, 0.0, 0.0]
    assert result.details[2] == {"target": "CAT", "read": "", "exact": False, "score": 0.0}


def test_larger_and_oblong_images(pooled: OcrReward) -> None:
    images, records = signs("HELLO")
    large = images.repeat(8, axis=1).repeat(8, axis=2)  # 512 x 512
    oblong = np.full((1, 64, 160, 3), BACKGROUND, np.uint8)
    oblong[:, :, 48:112] = images
    for batch in (large, oblong):
        assert pooled.submit(batch, records).result().scores.tolist() == [1.0]


@pytest.mark.parametrize("text", [None, " "])
def test_record_without_text_is_named(pooled: OcrReward, text: str | None) -> None:
    images, records = signs("STAR", "CAT")
    with pytest.raises(RewardError, match="^ocr-test-00041: "):
        pooled.submit(images, [records[0], ocr_record(text, 41)])


def test_failing_reader_is_an_error_that_names_the_record_never_a_zero(pooled: OcrReward) -> None:
    images, records = np.zeros((2, 0, 64, 3), np.uint8), [ocr_record("STAR", i) for i in (7, 8)]
    with pytest.raises(RewardError, match="^ocr-test-00007: [^\n]+$"):
        pooled.submit(images, records).result()
    assert pooled.submit(*signs("CAT")).result().scores.tolist() == [1.0]  # the pool survives


# ---------------------------------------------------------------- worker processes


def test_workers_open_their_readers_at_once_and_have_no_torch() -> None:
    reward = reward_of(1)
    assert reward._pool._pool is not None
    loaded = reward._pool._pool.submit(eval, "sorted(__import__('sys').modules)").result()
    reward.close()
    assert "rapidocr_onnxruntime" in loaded
    assert not {"torch", "diffusers", "transformers", "torchvision"} & set(loaded)


def test_submit_returns_however_slow_the_readers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches are handed over before either is read: meanwhile the trainer samples the next."""
    begun, go = threading.Event(), threading.Event()

    def read(images: np.ndarray, ids: list[str]) -> list[str]:
        begun.set()
        assert go.wait(20), "submit waits for the readers"
        return ["STAR"] * len(ids)

    reward = reward_of(0)
    monkeypatch.setattr(reward._pool, "read", read)
    futures = [reward.submit(*signs("STAR", "CAT")) for _ in range(2)]
    assert begun.wait(20) and not any(future.done() for future in futures)
    go.set()
    assert [future.result(60).scores.tolist() for future in futures] == [[1.0, 0.0]] * 2
    reward.close()


def test_a_worker_that_dies_is_replaced_once(caplog: pytest.LogCaptureFixture) -> None:
    reward = reward_of(1)
    for _ in range(2):  # once in each batch
        assert reward._pool._pool is not None
        reward._pool._pool.submit(eval, "__import__('os')._exit(3)")
        assert reward.submit(*signs("STAR", "CAT")).result().scores.tolist() == [1.0, 1.0]
    assert len(caplog.records) == 2
    reward.close()


def reads_until_it_meets(image: np.ndarray) -> list[str]:
    """A reader that a red image kills and that a blue one keeps for ever."""
    red, _, blue = image.reshape(-1, 3).mean(0)
    if red > blue + 50:
        os._exit(3)
    if blue > red + 50:
        time.sleep(600)
    return ["read"]


@pytest.mark.parametrize(
    ("color", "timeout", "said"), [(0, 60.0, "died twice"), (2, 3.0, "hangs .* 3 s")]
)
def test_an_image_that_kills_or_stops_its_reader_is_named(
    color: int, timeout: float, said: str
) -> None:
    reader = TextReader(load=os.getpid, lines=reads_until_it_meets, side=8)
    pool = ReadingPool(reader, workers=1, timeout=60.0)
    images = np.full((20, 8, 8, 3), 100, np.uint8)
    assert pool.read(images[:1], ["a"]) == ["read"]  # the process has started
    pool._timeout = timeout
    images[17, ..., color] = 255
    ids = [*"acdefghijklmnopq", "b", *"rst"]  # the second chunk begins with b
    with pytest.raises(RewardError, match=f"^b: .*{said}"):
        pool.read(images, ids)
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 60


PARENT = """
from star.config.params import OcrParams
from star.rewards.ocr import OcrReward

if __name__ == "__main__":
    reward = OcrReward(OcrParams(workers=1, substring=False, read_side=128), 600.0)
    print(reward._pool._pool.submit(eval, "__import__('os').getpid()").result(), flush=True)
    input()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks the process up in /proc")
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    pipe, null = subprocess.PIPE, subprocess.DEVNULL  # null: warnings of the pool's semaphores
    parent = subprocess.Popen(
        [sys.executable, script], stdin=pipe, stdout=pipe, stderr=null, env=env, text=True
    )
    assert parent.stdout is not None
    status = Path("/proc") / parent.stdout.readline().strip() / "status"
    assert _runs(status)
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 10
    while _runs(status) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(status)


def _runs(status: Path) -> bool:
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
