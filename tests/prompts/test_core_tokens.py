"""Positions of the core content in the text sequence of all three encoders."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer, T5Tokenizer

from star.config.params import SPANS
from star.miniature.world import CLASSES
from star.pretraining.tokenizers import save_clip_tokenizer, save_t5_tokenizer
from star.prompts.core_tokens import clause_records, require_core_tokens, scattered
from star.prompts.geneval import TAGS, sample_metadata
from star.prompts.records import CoreSpan
from star.prompts.words import WORDS
from star.system.errors import StarError
from tests.helpers.records import cored, record_of, sign_of, text_of

ALL_KINDS = dict.fromkeys(SPANS, 1.0)
LENGTHS = (16, 16)
DOG = {"class": "dog", "count": 1}
CAT = {"class": "cat", "count": 1}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    save_clip_tokenizer(folder / "clip")
    save_t5_tokenizer(folder / "t5")
    clips = (CLIPTokenizer.from_pretrained(folder / "clip") for _ in range(2))
    return (*clips, T5Tokenizer.from_pretrained(folder / "t5"))


def decoded(record, tokenizers, lengths=LENGTHS) -> list[str]:
    """Return the text of the core positions of each encoder, without blanks, in lower case."""
    weights = require_core_tokens(record, tokenizers, lengths, ALL_KINDS).weights
    parts = (weights[: lengths[0]], weights[: lengths[0]], weights[lengths[0] :])
    texts = []
    for tokenizer, part in zip(tokenizers, parts, strict=True):
        ids = tokenizer(record.prompt, padding="max_length", max_length=len(part), truncation=True)
        text = tokenizer.decode([ids["input_ids"][i] for i in np.flatnonzero(part)])
        texts.append(text.replace(" ", "").lower())
    return texts


def test_positions_of_a_sign_by_hand(tokenizers):
    record = sign_of("CAT")
    tokens = require_core_tokens(record, tokenizers, LENGTHS, {"text": 1.0, "carrier": 0.25})
    clip, _, t5 = (each.convert_ids_to_tokens(each(record.prompt).input_ids) for each in tokenizers)
    assert (clip[2], clip[6]) == ("sign</w>", "cat</w>")
    assert (t5[1], t5[5:8]) == ("▁sign", ["C", "A", "T"])
    expected = np.zeros(32, np.float32)
    expected[[2, 6]] = 0.25, 1.0
    expected[16 + 1], expected[16 + 5 : 16 + 8] = 0.25, 1.0
    np.testing.assert_array_equal(tokens.weights, expected)
    assert tokens.weights.dtype == np.float32
    assert not any(tokens.unseen.values())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_round_trip_from_spans_over_positions_to_text(tokenizers, data):
    if data.draw(st.booleans()):
        rng = np.random.default_rng(data.draw(st.integers(0, 9999)))
        metadata = sample_metadata(data.draw(st.sampled_from(TAGS)), CLASSES, rng)
        record = cored(record_of(metadata["prompt"], metadata, "geneval"))
    else:
        record = sign_of(data.draw(st.sampled_from(WORDS)))
    for core in (*((span,) for span in record.core), record.core):
        wanted = "".join(text_of(record, span) for span in core).replace(" ", "").lower()
        assert decoded(dataclasses.replace(record, core=core), tokenizers) == [wanted] * 3


def test_capitals_and_repeated_blanks_do_not_move_positions(tokenizers):
    record = cored(record_of("A  Cat   on a RED  chair"))
    assert decoded(record, tokenizers) == ["catredchair"] * 3


def test_start_end_padding_and_special_words_never_count(tokenizers):
    prompt = "<|endoftext|> cat </s>"
    whole = (CoreSpan(0, len(prompt), "subject"),)
    record = dataclasses.replace(record_of(prompt), core=whole)
    weights = require_core_tokens(record, tokenizers, LENGTHS, ALL_KINDS).weights
    for tokenizer, part in ((tokenizers[0], weights[:16]), (tokenizers[2], weights[16:])):
        tokens = tokenizer(prompt, padding="max_length", max_length=16)["input_ids"]
        counted = {tokens[i] for i in np.flatnonzero(part)}
        assert counted and counted.isdisjoint(tokenizer.all_special_ids)


def test_an_encoder_can_count_less_or_not_at_all(tokenizers):
    record = sign_of("STAR")
    both = require_core_tokens(record, tokenizers, LENGTHS, ALL_KINDS).weights
    encoders = {"clip": 0.5, "t5": 0.0}
    half = require_core_tokens(record, tokenizers, LENGTHS, ALL_KINDS, encoders)
    np.testing.assert_array_equal(half.weights[:16], both[:16] / 2)
    assert both[16:].any() and not half.weights[16:].any()
    assert set(half.unseen) == {"clip"}


class Spelling:
    """A CLIP tokenizer that spells: one token a character."""

    all_special_ids = (0,)

    def __call__(self, prompt, max_length, **_):
        offsets = [(0, 0), *((i, i + 1) for i in range(len(prompt)))][:max_length]
        padding = max_length - len(offsets)
        return {
            "input_ids": [0] + [1] * (len(offsets) - 1) + [0] * padding,
            "offset_mapping": offsets + [(0, 0)] * padding,
        }


def test_a_clip_position_counts_if_either_clip_tokenizer_says_so(tokenizers):
    clip, _, t5 = tokenizers
    record = cored(record_of("a cat"))
    pairs = ((clip, Spelling()), (Spelling(), clip))
    for pair in pairs:
        weights = require_core_tokens(record, (*pair, t5), LENGTHS, ALL_KINDS).weights
        assert np.flatnonzero(weights[:16]).tolist() == [2, 3, 4, 5]  # "cat", then c, a, t
    # What one of them still holds is not lost, though it lies beyond the other's last position.
    record = cored(record_of("a photo of a cat and a dog"))
    for pair in pairs:
        found = require_core_tokens(record, (*pair, t5), LENGTHS, ALL_KINDS)
        assert not any(found.unseen.values())
    found = require_core_tokens(record, (Spelling(), Spelling(), t5), LENGTHS, ALL_KINDS)
    assert found.unseen == {"clip": ("t", "dog"), "t5": ()}


def test_a_token_offset_with_its_leading_blank_is_the_same_token(tokenizers):
    clip, clip2, t5 = tokenizers

    class WithBlanks:
        """T5 offsets as other versions of the tokenizer give them: the blank belongs to the word
        after it."""

        all_special_ids = t5.all_special_ids

        def __call__(self, prompt, **options):
            encoding = dict(t5(prompt, **options))
            offsets = encoding["offset_mapping"]
            blank = [start > 0 and prompt[start - 1] == " " for start, _ in offsets]
            moved = [(a - before, b) for (a, b), before in zip(offsets, blank, strict=True)]
            return encoding | {"offset_mapping": moved}

    record = cored(record_of("a photo of a red wine glass"))
    plain, moved = (
        require_core_tokens(record, (clip, clip2, last), LENGTHS, ALL_KINDS).weights
        for last in (t5, WithBlanks())
    )
    np.testing.assert_array_equal(moved, plain)


def test_what_is_cut_off_is_reported_word_by_word(tokenizers):
    record = cored(record_of("a cat and a dog and a horse and a chair and a clock and a cup"))

    def unseen(clip: int, t5: int) -> dict:
        return require_core_tokens(record, tokenizers, (clip, t5), ALL_KINDS).unseen

    assert unseen(32, 32) == {"clip": (), "t5": ()}
    assert unseen(16, 32) == {"clip": ("clock", "cup"), "t5": ()}
    assert unseen(32, 4) == {"clip": (), "t5": ("dog", "horse", "chair", "clock", "cup")}
    assert decoded(record, tokenizers, (16, 32))[0].startswith("catdoghorse")
    assert decoded(record, tokenizers, (16, 32))[2] == "catdoghorsechairclockcup"


def test_a_half_cut_word_is_reported_and_still_counts(tokenizers):
    tokens = require_core_tokens(sign_of("HOUSE"), tokenizers, (16, 8), ALL_KINDS)
    assert tokens.unseen["t5"] == ("USE",)
    assert np.flatnonzero(tokens.weights[16:]).tolist() == [1, 5, 6]  # sign, H, O; then </s>


@pytest.mark.parametrize(
    ("record", "lengths", "kinds", "told"),
    [
        (sign_of("HI"), LENGTHS, {"object": 1.0, "text": 0.0}, r"core\.weights .*carrier, text"),
        (sign_of("HI"), (4, 4), {"text": 1.0}, r"\('HI'\) within 4 CLIP and 4 T5.*t5_tokens"),
        (record_of("a cat"), LENGTHS, ALL_KINDS, "`star core`"),
    ],
)
def test_a_prompt_with_nothing_left_is_named(tokenizers, record, lengths, kinds, told):
    with pytest.raises(StarError, match=f"prompt some-00001: .*{told}"):
        require_core_tokens(record, tokenizers, lengths, kinds)


# ---------------------------------------------------------------- clauses, and the control


TWO_TEXTS = {"text": ["BIG", "TOE"]}


@pytest.mark.parametrize(
    ("prompt", "metadata", "task", "clauses"),
    [
        (
            "a photo of a cat left of a dog",
            {"include": [DOG, CAT | {"position": ["left of", 0]}]},
            "geneval",
            [["dog"], ["cat", "left of"]],
        ),
        # In other words than the form's every clause has the whole core.
        ("my cat beside that dog", {"include": [DOG, CAT]}, "geneval", [["cat", "dog"]] * 2),
        # Letters are the clauses of a text, with what carries it.
        ('a "BIG TOE" sign', {"text": "BIG TOE"}, "ocr", [[x, "sign"] for x in "BIGTOE"]),
        (
            'a sign that says "BIG" and a cup that says "TOE"',
            TWO_TEXTS,
            "ocr",
            [[x, "sign"] for x in "BIG"] + [[x, "cup"] for x in "TOE"],
        ),
        ('a sign, "BIG" above "TOE"', TWO_TEXTS, "ocr", [[x, "sign"] for x in "BIGTOE"]),
        ('"BIG TOE"', {"text": "BIG TOE"}, "ocr", [[x] for x in "BIGTOE"]),
        ("a small house", {}, "preference", [["small house"]]),
        ("a photo of a dog and a cat", {"include": [DOG, CAT]}, "preference", [["dog", "cat"]]),
    ],
)
def test_each_clause_that_a_reward_scores_has_its_own_core(prompt, metadata, task, clauses):
    records = clause_records(cored(record_of(prompt, metadata, task)))
    assert [[text_of(record, span) for span in record.core] for record in records] == clauses


def test_scattered_weights_lie_on_other_words_and_keep_their_number():
    weights = np.zeros((2, 20), np.float32)
    weights[0, 3], weights[1, 5], weights[1, 6] = 1.0, 0.5, 2.0
    words = np.zeros(20, bool)
    words[[1, 2, 8, 9]] = True
    moved = scattered(weights, words, 1)
    assert not moved[:, ~words].any()
    assert [sorted(row[row > 0]) for row in moved] == [[1.0], [0.5, 2.0]]
    np.testing.assert_array_equal(scattered(weights, words, 1), moved)
    assert (scattered(weights, words, 2) != moved).any()


def test_scattered_weights_where_nearly_everything_is_core():
    weights, words = np.ones((1, 4), np.float32), np.zeros(4, bool)
    assert not scattered(weights, words, 0).any(), "nothing but core: no control, a flat map"
    weights[0, 2], words[2] = 0, True
    assert scattered(weights, words, 0).tolist() == [[0, 0, 3, 0]], "what it stands for is not lost"


@pytest.mark.parametrize("encoders", [{"clip": 1.0, "t5": 1.0}, {"clip": 1.0, "t5": 0.0}])
def test_other_words_are_neither_core_nor_padding(tokenizers, encoders):
    record = cored(record_of("a photo of a dog", {"include": [DOG]}, "geneval"))
    found = require_core_tokens(record, tokenizers, LENGTHS, ALL_KINDS, encoders)
    assert not (found.others & (found.weights > 0)).any()
    clip, t5 = found.others[:16], found.others[16:]
    assert clip.any() and not clip[0] and not clip[-1] and t5.any() == (encoders["t5"] > 0)
