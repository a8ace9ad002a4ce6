"""OCR reward: does the image show the words that the prompt quotes?

PP-OCRv4 (`rapidocr-onnxruntime`, whose wheel carries the models) reads on the CPU, in the worker
processes of `star.rewards.reading`; the trainer goes on meanwhile. Its cost is linear in pixels. So
images are enlarged only to ``read_side``, and the recogniser's input is as wide as the text."""

import logging
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rapidfuzz.distance import Levenshtein

from star.config.params import OcrParams
from star.prompts.records import PromptRecord, texts_of
from star.rewards.base import Reward, RewardError, RewardResult, check_batch
from star.rewards.reading import ReadingPool, TextReader

if TYPE_CHECKING:
    from rapidocr_onnxruntime import RapidOCR

TEXT_HEIGHT = 48  # pixels, the recogniser's input height
MOST_ORDERED = 5  # targets of a prompt that are tried in every order


# Characters that NFKC leaves, or takes for others, though a sign shows them alike.
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′´`", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        "⁄": "/",
    }
)


def normalized(text: str, published: bool = False) -> str:
    """Return text as it is compared: lower case, NFKC, plain quotation marks and dashes, without
    white space (``published``: without U+0020 alone)."""
    if published:
        text = text.replace(" ", "")
    text = unicodedata.normalize("NFKC", text.translate(_PLAIN)).translate(_PLAIN).lower()
    return text if published else "".join(text.split())


def text_reward(read: str, target: str | Sequence[str], substring: bool) -> float:
    """Return ``1 - min(d, len) / len`` in [0, 1], d the Levenshtein distance of normalised texts.

    Flow-GRPO's OCR task (arXiv 2505.05470) is ``substring=True``: d is 0 wherever the read text
    contains the target, so "LOVEE" pays in full for "LOVE". Else each extra character is an edit.
    Several targets are one, in the order that fits best.

    Raises:
        ValueError: a target is empty."""
    targets = [target] if isinstance(target, str) else target
    read, wanted = normalized(read, substring), _normalized_all(targets, substring)
    if substring and all(text in read for text in wanted):
        return 1.0
    joined = "".join(wanted[index] for index in _best_order(read, wanted))
    return 1.0 - min(Levenshtein.distance(read, joined), len(joined)) / len(joined)


def letter_shares(read: str, target: str | Sequence[str], substring: bool) -> np.ndarray:
    """Return each letter's part of `text_reward`: float32 (letters,), with it as sum.

    Letters are the targets' characters except white space, as in `core_tokens.clause_records`.
    A letter counts ``1 / len``; a missing or misread one nothing. An extra character costs as much,
    at the letter where it stands. Where the reward is 0, all parts are."""
    targets = [target] if isinstance(target, str) else target
    reward = text_reward(read, targets, substring)
    read, wanted = normalized(read, substring), _normalized_all(targets, substring)
    owners, letters = [], 0
    for text in targets:
        owners.append([letters + place for place in _owners(text, substring)])
        letters += sum(not character.isspace() for character in text)
    order = _best_order(read, wanted)
    owner, joined = sum((owners[i] for i in order), []), "".join(wanted[i] for i in order)
    shares = np.bincount(owner, minlength=letters).astype(np.float32)
    if reward == 0:
        return np.zeros_like(shares)
    if reward < 1:
        for edit in Levenshtein.editops(read, joined):
            shares[owner[min(edit.dest_pos, len(joined) - 1)]] -= 1
    return shares / len(joined)


def _normalized_all(targets: Sequence[str], published: bool) -> list[str]:
    wanted = [normalized(text, published) for text in targets]
    if not wanted or not all(map(str.strip, wanted)):
        raise ValueError("the target text is empty")
    return wanted


def _best_order(read: str, wanted: Sequence[str]) -> tuple[int, ...]:
    """Return the order of targets whose concatenation is nearest to what is read.

    More than `MOST_ORDERED` stay in the prompt's order."""
    orders = permutations(range(len(wanted)))
    if len(wanted) > MOST_ORDERED:
        return next(orders)
    return min(orders, key=lambda o: Levenshtein.distance(read, "".join(wanted[i] for i in o)))


def _owners(target: str, published: bool) -> list[int]:
    """Return the letter of a text to which each character of its normalised form belongs.

    NFKC makes several characters of one, or one of several, which the first has then."""
    owners: list[int] = []
    letter = -1
    for end, character in enumerate(target, 1):
        letter += not character.isspace()
        more = len(normalized(target[:end], published)) - len(owners)
        owners += [max(letter, 0)] * more
    return owners[: len(normalized(target, published))]


class OcrReward(Reward):
    """`text_reward` of the words in ``record.metadata["text"]``: scores in [0, 1].

    Details are ``target`` (several joined by spaces), ``read`` (the text lines from top to bottom,
    joined by spaces), ``exact`` (equal once normalised) and ``score``. They do not depend on the
    other images."""

    name = "ocr"

    def __init__(self, params: OcrParams, timeout: float) -> None:
        """Start ``params.workers`` processes; with 0 (not from params.yaml) a thread reads."""
        self._substring = params.substring
        self._collector = ThreadPoolExecutor(1, thread_name_prefix="ocr")
        self._pool = ReadingPool(ppocrv4(params.read_side), params.workers, timeout)

    def submit(self, images: np.ndarray, records: Sequence[PromptRecord]) -> "Future[RewardResult]":
        """Start scoring and return immediately.

        Raises:
            RewardError: a record without text; from ``result()`` what `ReadingPool.read` raises."""
        check_batch(self.name, images, records)
        targets = [target_texts(record) for record in records]
        ids = [record.id for record in records]
        return self._collector.submit(self._score, images, ids, targets)

    def close(self) -> None:
        self._pool.close()
        self._collector.shutdown(cancel_futures=True)

    def _score(self, images: np.ndarray, ids: list[str], targets: list[list[str]]) -> RewardResult:
        details, shares = [], []
        for read, target in zip(self._pool.read(images, ids), targets, strict=True):
            score = text_reward(read, target, self._substring)
            exact = text_reward(read, target, substring=False) == 1
            found = {"read": read, "exact": exact, "score": score}
            details.append({"target": " ".join(target), **found})
            shares.append(letter_shares(read, target, self._substring))
        scores = np.array([detail["score"] for detail in details], np.float32)
        return RewardResult(scores, details, shares)


def target_texts(record: PromptRecord) -> list[str]:
    """Return the words that the record's prompt quotes; `RewardError` if it has none."""
    texts = texts_of(record.metadata)
    if not texts:
        raise RewardError(
            f"{record.id}: no text to read for: the ocr reward needs metadata "
            '{"text": WORD}; prepare OCR prompts'
        )
    return texts


def report_unreadable(
    records: Sequence[PromptRecord], model: Path, say: Callable[[str], None]
) -> None:
    """Say once which characters of the texts to be drawn a reader cannot read.

    Args:
        model: the recogniser, an ONNX file that has its alphabet with it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    alphabet = session.get_modelmeta().custom_metadata_map["character"]
    known = {part for character in alphabet for part in normalized(character)}
    lacking = {
        record.id: missing
        for record in records
        if (missing := set().union(*map(normalized, target_texts(record))) - known)
    }
    if lacking:
        characters = " ".join(sorted(set().union(*lacking.values())))
        count = f"{len(lacking)} of {len(records)} prompts, first {next(iter(lacking))}"
        say(f"warning: {model.name} cannot read {characters}: {count} stay below reward 1")


def recogniser() -> Path:
    """Return the file of the reward's recogniser."""
    import rapidocr_onnxruntime

    package = Path(rapidocr_onnxruntime.__file__).parent
    return package / "models" / "ch_PP-OCRv4_rec_infer.onnx"


def ppocrv4(side: int) -> TextReader:
    """Return the reward's reader; ``side`` is `rewards.ocr.read_side`."""
    return TextReader(reader, _lines, side)


def _lines(image: np.ndarray) -> list[str]:
    found, _ = reader()(image[..., ::-1], use_cls=False)  # PP-OCR wants BGR
    return [text for _, text, _ in found or ()]


@cache
def reader() -> "RapidOCR":
    """Open this process's PP-OCRv4; detection sees the image's own size, at most 960 pixels."""
    import cv2

    for name in ("RapidOCR", "OrtInferSession"):
        logging.getLogger(name).disabled = True
    from rapidocr_onnxruntime import RapidOCR

    cv2.setNumThreads(1)
    return RapidOCR(
        intra_op_num_threads=1,
        inter_op_num_threads=1,
        use_cls=False,
        det_limit_type="max",
        rec_img_shape=[3, TEXT_HEIGHT, TEXT_HEIGHT],  # the last is the least width
        rec_batch_num=1,  # a batch is padded to its widest text, which changes what is read
    )
