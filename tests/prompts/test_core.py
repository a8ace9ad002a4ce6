"""Core spans of every form of prompt, and their positions in the text sequence of all three
encoders."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star.miniature.world import CLASSES
from star.prompts.core_content import extract_core
from star.prompts.core_tokens import clause_records, require_core_tokens, scattered
from star.prompts.geneval import COCO_CLASSES, COUNT_WORDS, TAGS, plural, sample_metadata
from star.prompts.ocr import TEMPLATES
from star.prompts.records import KINDS, CoreSpan, PromptRecord
from star.prompts.words import WORDS
from star.system.errors import StarError

ALL_KINDS = dict.fromkeys(KINDS, 1.0)
LENGTHS = (16, 16)


def record_of(prompt: str, metadata: dict | None = None, task: str = "preference") -> PromptRecord:
    return PromptRecord("some-00001", task, prompt, metadata or {})


def cored(record: PromptRecord, *spans: CoreSpan) -> PromptRecord:
    return PromptRecord(
        record.id, record.task, record.prompt, record.metadata, spans or extract_core(record)
    )


def spelled(record: PromptRecord) -> list[tuple[str, str, int | None]]:
    return [
        (record.prompt[span.start : span.end], span.kind, span.clause)
        for span in extract_core(record)
    ]


def subjects(prompt: str) -> list[str]:
    record = record_of(prompt)
    assert {span.kind for span in extract_core(record)} == {"subject"}
    return [text for text, _, _ in spelled(record)]


# ---------------------------------------------------------------- GenEval's forms


def test_position_names_both_clauses_in_the_order_of_the_prompt():
    metadata = {
        "tag": "position",
        "include": [
            {"class": "wine glass", "count": 1},
            {"class": "cat", "count": 1, "position": ["left of", 0]},
        ],
    }
    record = record_of("a photo of a cat left of a wine glass", metadata, "geneval")
    assert spelled(record) == [
        ("cat", "object", 1),
        ("left of", "relation", 1),
        ("wine glass", "object", 0),
    ]


def test_words_that_occur_twice_are_told_apart():
    include = [
        {"class": "orange", "count": 1, "color": "red"},
        {"class": "orange", "count": 1, "color": "orange"},
    ]
    record = record_of(
        "a photo of a red orange and an orange orange", {"include": include}, "geneval"
    )
    expected = [
        ("red", "color", 0),
        ("orange", "object", 0),
        ("orange", "color", 1),
        ("orange", "object", 1),
    ]
    assert spelled(record) == expected
    assert [span.start for span in extract_core(record)] == [13, 17, 31, 38]


@pytest.mark.parametrize("noun", ["couches", "couchs", "couch"])
def test_both_spellings_of_a_plural_are_one_span(noun):
    record = record_of(
        f"a photo of three {noun}", {"include": [{"class": "couch", "count": 3}]}, "geneval"
    )
    assert spelled(record) == [("three", "count", 0), (noun, "object", 0)]


def test_a_prompt_that_departs_from_its_form_is_read_as_a_free_one():
    record = record_of(
        "two people on a red couch", {"include": [{"class": "person", "count": 2}]}, "geneval"
    )
    assert spelled(record) == [("two people", "subject", None), ("red couch", "subject", None)]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(TAGS), st.sampled_from([CLASSES, COCO_CLASSES]), st.integers(0, 2**32))
def test_every_form_gives_exactly_the_words_of_its_clauses(tag, classes, seed):
    metadata = sample_metadata(tag, classes, np.random.default_rng(seed))
    record = record_of(metadata["prompt"], metadata, "geneval")
    expected = set()
    for index, clause in enumerate(metadata["include"]):
        several = clause["count"] > 1
        expected.add((plural(clause["class"]) if several else clause["class"], "object", index))
        if several:
            expected.add((COUNT_WORDS[clause["count"]], "count", index))
        if "color" in clause:
            expected.add((clause["color"], "color", index))
        if "position" in clause:
            expected.add((clause["position"][0], "relation", index))
    assert set(spelled(record)) == expected
    assert len(spelled(record)) == len(expected)
    # What is left over is the frame alone: articles, "photo of", "and".
    rest = list(record.prompt)
    for span in extract_core(record):
        rest[span.start : span.end] = " " * (span.end - span.start)
    assert set("".join(rest).split()) <= {"a", "an", "photo", "of", "and"}


def test_captions_of_the_preference_task_are_read_by_the_same_grammar():
    metadata = sample_metadata("color_attr", CLASSES, np.random.default_rng(0))
    of_preference, of_geneval = (
        record_of(metadata["prompt"], metadata, task) for task in ("preference", "geneval")
    )
    assert extract_core(of_preference) == extract_core(of_geneval)
    sign = 'a sign that says "HI"'
    assert extract_core(record_of(sign, {"text": "HI"})) == extract_core(
        record_of(sign, {"text": "HI"}, "ocr")
    )


# ---------------------------------------------------------------- signs


@pytest.mark.parametrize(
    ("prompt", "text", "carrier"),
    [
        ('a sign that says "OPEN"', "OPEN", "sign"),
        ("A photo of a “STOP” sign", "STOP", "sign"),
        (
            'New York Skyline with "Hello World" written with fireworks on the sky.',
            "Hello World",
            "Skyline",
        ),
        (
            'a laboratory flask with a yellow label that reads " Toxic Hazard "',
            "Toxic Hazard",
            "label",
        ),
        ('a wall beside a door, the door with "IN" and "OUT"', "IN", "door"),
        ('An astronaut helmet engraved with "X1"', "X1", "helmet"),
        ('"HI"', "HI", None),
        ('the word "GO" made of swirling smoke', "GO", None),
        ('"Keep Left" painted on the side of a narrow bus', "Keep Left", "bus"),
        ('a cup of tea with "MUM" on it', "MUM", "cup"),
        ('a stack of crates stamped "FRAGILE"', "FRAGILE", "crates"),
        ('a neon sign in a dark street reading "BAR"', "BAR", "sign"),
        ('a wooden board, nailed up a little crooked, says "LAST"', "LAST", "board"),
        ('a buoy, hanging from a chain, that reads: "INN"', "INN", "buoy"),
        ('a wall, painted by hand, and a flag saying "UP"', "UP", "flag"),
        ("a van with »Blumen Krause« on its side", "Blumen Krause", "van"),
        ("ein altes Schild mit der Aufschrift „Zum Hirsch“", "Zum Hirsch", "Schild"),
        ("un cartel rojo que dice «Cerrado»", "Cerrado", "cartel"),
        ("rock 'n' roll bar, a door with 'Joe's Place'", "Joe's Place", "door"),
        ("a mug with ‘It’s Monday’ on it", "It’s Monday", "mug"),
        ("a lantern with 「営業中」", "営業中", "lantern"),
        (
            'a plaque with «the "old" mill»',
            'the "old" mill',
            "plaque",
        ),  # the double quotation lies inside
        ("a 'new' mug with \"TEA\"", "TEA", "mug"),  # otherwise the published reading comes first
    ],
)
def test_the_first_quotation_is_the_text_and_the_nearest_thing_carries_it(prompt, text, carrier):
    expected = {(text, "text", None)} | ({(carrier, "carrier", None)} if carrier else set())
    assert set(spelled(record_of(prompt, {"text": text}, "ocr"))) == expected


def test_every_template_has_a_carrier():
    for template in TEMPLATES:
        kinds = [
            kind
            for _, kind, _ in spelled(record_of(template.format("SUN"), {"text": "SUN"}, "ocr"))
        ]
        assert sorted(kinds) == ["carrier", "text"], template


def test_an_ocr_prompt_without_a_quotation_is_named():
    with pytest.raises(StarError, match="prompt some-00001: no quoted span"):
        extract_core(record_of("a sign that says OPEN", {"text": "OPEN"}, "ocr"))


# ---------------------------------------------------------------- free prompts


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", ["cat"]),
        (
            "A portrait of a cyberpunk woman with neon hair, intricate, highly detailed, trending on artstation, 8k, "
            "by greg rutkowski and alphonse mucha",
            ["cyberpunk woman", "neon hair"],
        ),
        (
            "a highly detailed oil painting of a dog running in the park by the sea",
            ["dog", "park", "sea"],
        ),
        ("masterpiece, best quality, blue hair, red dress", ["blue hair", "red dress"]),
        (
            "an astronaut riding a horse on mars, cinematic lighting, unreal engine 5",
            ["astronaut", "horse", "mars"],
        ),
        ("a woman holding a painting of a cat", ["woman", "painting", "cat"]),
        ("Two men wearing red hats - studio ghibli style", ["Two men", "red hats"]),
        ("(a t-rex:1.3), [the king's castle]", ["t-rex", "king's castle"]),
        ("一只猫, 8k", ["一只猫"]),
        # verbs and participles
        (
            "A man walks two dogs while a lifeguard watches from his tower",
            ["man", "two dogs", "lifeguard", "tower"],
        ),
        (
            "On the pier stands a tax collector in a crooked hat",
            ["pier", "tax collector", "crooked hat"],
        ),
        (
            "dishes piled in the sink, boats tied together by frayed ropes",
            ["dishes", "sink", "boats", "frayed ropes"],
        ),
        ("a quiet reading room with a sleeping dog", ["quiet reading room", "sleeping dog"]),
        ("a robot watering sunflowers near a clearing", ["robot", "sunflowers", "clearing"]),
        ("a neon sign that says open late above a door", ["neon sign", "open late", "door"]),
        # what is not in the picture, places and times
        ("an empty street with no cars and people, a cat", ["empty street", "cat"]),
        ("a bear taller than a house, a kite that looks like a fish", ["bear", "kite", "fish"]),
        ("a cup to the left of a lamp at night, hills in the background", ["cup", "lamp", "hills"]),
        # style as a head, a sentence of its own, a name between angle brackets
        ("a woman holding a camera, soft light, film grain, wide angle lens", ["woman", "camera"]),
        (
            "Macro shot of a bee. Painted in rich, saturated colours. The mood is calm, joy and wonder.",
            ["bee"],
        ),
        ("a red light above a door, <lora:dreamy_v2:0.6>", ["red light", "door"]),
        # other languages
        ("ein alter Leuchtturm steht auf einer Insel, Ölgemälde", ["alter Leuchtturm", "Insel"]),
        ("un gato negro durmiendo sobre un tejado rojo, acuarela", ["gato negro", "tejado rojo"]),
        ("雨の東京を歩く猫、映画のような照明", ["雨", "東京", "猫"]),
    ],
)
def test_subjects_without_style(prompt, expected):
    assert subjects(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("8k, highly detailed", ["8k", "highly", "detailed"]),
        ("of the", ["of", "the"]),
        ("by Monet", ["Monet"]),
    ],
)
def test_where_the_rules_find_nothing_every_content_word_counts(prompt, expected):
    assert spelled(record_of(prompt)) == [(word, "content", None) for word in expected]


@pytest.mark.parametrize(
    "piece",
    [
        "A tall man in a green coat walks two dogs, 8k, by John Smith. ",
        "red ",
        "cup of ",
        "a-",
        "猫の",
        "'a ",
        "“",
        "x, ",
    ],
)
def test_ten_thousand_characters_take_no_longer_than_their_words(piece):
    def seconds(length: int) -> float:
        prompt = (piece * length)[:length] + ' a cat "HI"'
        start = time.perf_counter()
        for task in ("preference", "ocr"):
            extract_core(record_of(prompt, task=task))
        return time.perf_counter() - start

    seconds(1000)
    assert seconds(10_000) < 2.0  # quadratic rules have taken ten seconds and more


def test_a_prompt_without_a_word_is_named():
    with pytest.raises(StarError, match="prompt some-00001: '...' has no word"):
        extract_core(record_of("..."))


vocabulary = [
    "a",
    "of",
    "cat",
    "8k",
    "trending on artstation",
    "by",
    "Monet",
    "in",
    "photo of",
    "style",
    "running",
    "7",
]
free_prompts = st.text(max_size=60) | st.lists(
    st.sampled_from(vocabulary) | st.sampled_from([",", ".", " - ", '"', "_"]), max_size=12
).map(" ".join)


@settings(max_examples=400, deadline=None)
@given(free_prompts.filter(lambda prompt: any(map(str.isalnum, prompt))))
def test_spans_of_any_prompt_lie_in_it_apart_and_begin_and_end_with_a_word(prompt):
    spans = extract_core(record_of(prompt))
    assert spans
    assert all(0 <= span.start < span.end <= len(prompt) for span in spans)
    assert all(a.end <= b.start for a, b in zip(spans, spans[1:], strict=False))
    for span in spans:
        assert prompt[span.start].isalnum() and prompt[span.end - 1].isalnum()
        outside = prompt[max(span.start - 1, 0) : span.start] + prompt[span.end : span.end + 1]
        assert not any(map(str.isalnum, outside))  # whole words


# ---------------------------------------------------------------- token positions


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    from transformers import CLIPTokenizer, T5Tokenizer

    from star.pretraining.tokenizers import save_clip_tokenizer, save_t5_tokenizer

    folder = tmp_path_factory.mktemp("tokenizers")
    save_clip_tokenizer(folder / "clip")
    save_t5_tokenizer(folder / "t5")
    clip = CLIPTokenizer.from_pretrained(folder / "clip")
    return (
        clip,
        CLIPTokenizer.from_pretrained(folder / "clip"),
        T5Tokenizer.from_pretrained(folder / "t5"),
    )


def decoded(record: PromptRecord, tokenizers, lengths=LENGTHS, kind_weights=ALL_KINDS) -> list[str]:
    """The text of the core positions, of each encoder, without blanks and in lower case."""
    weights = require_core_tokens(record, tokenizers, lengths, kind_weights).weights
    parts = [weights[: lengths[0]], weights[: lengths[0]], weights[lengths[0] :]]
    texts = []
    for tokenizer, part, length in zip(tokenizers, parts, (lengths[0], *lengths), strict=True):
        tokens = tokenizer(record.prompt, padding="max_length", max_length=length, truncation=True)[
            "input_ids"
        ]
        texts.append(
            tokenizer.decode([tokens[i] for i in np.flatnonzero(part)]).replace(" ", "").lower()
        )
    return texts


def test_positions_of_a_sign_by_hand(tokenizers):
    record = cored(record_of('a sign that says "CAT"', {"text": "CAT"}, "ocr"))
    tokens = require_core_tokens(record, tokenizers, LENGTHS, {"text": 1.0, "carrier": 0.25})
    expected = np.zeros(32, np.float32)
    clip_tokens = tokenizers[0].convert_ids_to_tokens(tokenizers[0](record.prompt)["input_ids"])
    assert clip_tokens[:6] == [
        "<|startoftext|>",
        "a</w>",
        "sign</w>",
        "that</w>",
        "says</w>",
        '"</w>',
    ]
    assert clip_tokens[6:-2] == ["cat</w>"]
    expected[[2, 6]] = 0.25, 1.0
    t5_tokens = tokenizers[2].convert_ids_to_tokens(tokenizers[2](record.prompt)["input_ids"])
    assert t5_tokens == ["▁a", "▁sign", "▁that", "▁says", '▁"', "C", "A", "T", '"', "</s>"]
    expected[16 + 1], expected[16 + 5 : 16 + 8] = 0.25, 1.0
    np.testing.assert_array_equal(tokens.weights, expected)
    assert tokens.weights.dtype == np.float32
    assert tokens.dropped == ()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_round_trip_from_spans_over_positions_to_text(tokenizers, data):
    if data.draw(st.booleans()):
        metadata = sample_metadata(
            data.draw(st.sampled_from(TAGS)),
            CLASSES,
            np.random.default_rng(data.draw(st.integers(0, 9999))),
        )
        record = record_of(metadata["prompt"], metadata, "geneval")
    else:
        word = data.draw(st.sampled_from(WORDS))
        record = record_of(f'a sign that says "{word}"', {"text": word}, "ocr")
    for span in extract_core(record):
        wanted = record.prompt[span.start : span.end].replace(" ", "").lower()
        assert decoded(cored(record, span), tokenizers) == [wanted] * 3
    together = "".join(record.prompt[span.start : span.end] for span in extract_core(record))
    assert decoded(cored(record), tokenizers) == [together.replace(" ", "").lower()] * 3


def test_capitals_and_repeated_blanks_do_not_move_positions(tokenizers):
    record = record_of("A  Cat   on a RED  chair")
    assert decoded(cored(record), tokenizers) == ["catredchair"] * 3


def test_start_end_padding_and_special_words_never_count(tokenizers):
    prompt = "<|endoftext|> cat </s>"
    weights = require_core_tokens(
        cored(record_of(prompt), CoreSpan(0, len(prompt), "subject")),
        tokenizers,
        LENGTHS,
        ALL_KINDS,
    )
    for tokenizer, part in (
        (tokenizers[0], weights.weights[:16]),
        (tokenizers[2], weights.weights[16:]),
    ):
        tokens = tokenizer(prompt, padding="max_length", max_length=16)["input_ids"]
        counted = {tokens[i] for i in np.flatnonzero(part)}
        assert counted and counted.isdisjoint(tokenizer.all_special_ids)


def test_an_encoder_can_count_less_or_not_at_all(tokenizers):
    record = cored(record_of('a sign that says "STAR"', {"text": "STAR"}, "ocr"))
    both = require_core_tokens(record, tokenizers, LENGTHS, ALL_KINDS).weights
    half = require_core_tokens(record, tokenizers, LENGTHS, ALL_KINDS, {"clip": 0.5, "t5": 0.0})
    assert (
        (half.weights[:16] == both[:16] / 2).all()
        and both[16:].any()
        and not half.weights[16:].any()
    )


def test_a_clip_position_counts_if_either_clip_tokenizer_says_so(tokenizers):
    clip, _, t5 = tokenizers

    class Spelling:
        """A second CLIP tokenizer that spells: one token a character, as ``umbrella`` never is in
        the first."""

        all_special_ids = (0,)

        def __call__(self, prompt, max_length, **_):
            offsets = [(0, 0), *((i, i + 1) for i in range(len(prompt)))][:max_length]
            padding = max_length - len(offsets)
            return {
                "input_ids": [0] + [1] * (len(offsets) - 1) + [0] * padding,
                "offset_mapping": offsets + [(0, 0)] * padding,
            }

    record = cored(record_of("a cat"))
    weights = require_core_tokens(record, (clip, Spelling(), t5), LENGTHS, ALL_KINDS).weights
    np.testing.assert_array_equal(np.flatnonzero(weights[:16]), [2, 3, 4, 5])  # "cat", then c, a, t
    swapped = require_core_tokens(record, (Spelling(), clip, t5), LENGTHS, ALL_KINDS).weights
    np.testing.assert_array_equal(swapped, weights)
    # What one of them still holds is not lost, though it lies beyond the other's last position.
    record = cored(record_of("a photo of a cat and a dog"))
    for pair in ((clip, Spelling()), (Spelling(), clip)):
        assert require_core_tokens(record, (*pair, t5), LENGTHS, ALL_KINDS).dropped == ()
    assert (
        len(require_core_tokens(record, (Spelling(), Spelling(), t5), LENGTHS, ALL_KINDS).dropped)
        == 2
    )


def test_a_token_offset_with_its_leading_blank_is_the_same_token(tokenizers):
    clip, clip2, t5 = tokenizers

    class WithBlanks:
        """T5 offsets as other versions of the tokenizer give them: the blank belongs to the word
        after it."""

        all_special_ids = t5.all_special_ids

        def __call__(self, prompt, **options):
            encoding = dict(t5(prompt, **options))
            offsets = encoding["offset_mapping"]
            encoding["offset_mapping"] = [
                (a - (a > 0 and prompt[a - 1] == " "), b) for a, b in offsets
            ]
            return encoding

    record = cored(record_of("a photo of a red wine glass"))
    plain = require_core_tokens(record, tokenizers, LENGTHS, ALL_KINDS)
    np.testing.assert_array_equal(
        require_core_tokens(record, (clip, clip2, WithBlanks()), LENGTHS, ALL_KINDS).weights,
        plain.weights,
    )


def test_truncated_spans_are_reported(tokenizers):
    record = cored(record_of("a cat and a dog and a horse and a chair and a clock and a cup"))
    tokens = require_core_tokens(record, tokenizers, (16, 32), ALL_KINDS)
    assert [record.prompt[span.start : span.end] for span in tokens.dropped] == [
        "clock",
        "cup",
    ]  # CLIP has lost them
    assert decoded(record, tokenizers, (16, 32))[0].startswith("catdoghorse")
    assert decoded(record, tokenizers, (16, 32))[2] == "catdoghorsechairclockcup"
    assert require_core_tokens(record, tokenizers, (32, 32), ALL_KINDS).dropped == ()
    assert require_core_tokens(record, tokenizers, (32, 4), ALL_KINDS).dropped == record.core[1:]


def test_a_half_cut_span_is_reported_and_still_counts(tokenizers):
    record = cored(record_of('a sign that says "HOUSE"', {"text": "HOUSE"}, "ocr"))
    tokens = require_core_tokens(record, tokenizers, (16, 8), ALL_KINDS)
    assert [span.kind for span in tokens.dropped] == ["text"]
    np.testing.assert_array_equal(
        np.flatnonzero(tokens.weights[16:]), [1, 5, 6]
    )  # sign, H, O; then </s>


def test_a_prompt_with_nothing_left_is_named(tokenizers):
    record = cored(record_of('a sign that says "HI"', {"text": "HI"}, "ocr"))
    with pytest.raises(
        StarError, match=r"prompt some-00001: core\.weights leaves out all it has \(carrier, text\)"
    ):
        require_core_tokens(record, tokenizers, LENGTHS, {"object": 1.0, "text": 0.0})
    with pytest.raises(
        StarError,
        match="prompt some-00001: no core content \\('HI'\\) within 4 CLIP and 4 T5 tokens",
    ):
        require_core_tokens(record, tokenizers, (4, 4), {"text": 1.0})
    with pytest.raises(StarError, match="prompt some-00001: no core spans; run `star core`"):
        require_core_tokens(record_of("a cat"), tokenizers, LENGTHS, ALL_KINDS)


# ---------------------------------------------------------------- clauses and the control without c


def parts(record: PromptRecord) -> list[list[str]]:
    return [
        [record.prompt[span.start : span.end] for span in part.core]
        for part in clause_records(record)
    ]


def test_clauses_of_geneval_have_their_own_spans():
    include = [
        {"class": "dog", "count": 1},
        {"class": "cat", "count": 1, "position": ["left of", 0]},
    ]
    record = cored(record_of("a photo of a cat left of a dog", {"include": include}, "geneval"))
    assert parts(record) == [["dog"], ["cat", "left of"]]


def test_a_prompt_in_other_words_gives_every_clause_the_whole_core():
    include = [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}]
    record = cored(record_of("my cat chases that dog", {"include": include}, "geneval"))
    assert parts(record) == [["cat", "dog"]] * 2 or parts(record) == [["cat chases", "dog"]] * 2


def test_letters_are_the_clauses_of_a_text():
    record = cored(record_of('a sign that says "BIG TOE"', {"text": "BIG TOE"}, "ocr"))
    assert parts(record) == [
        ["B", "sign"],
        ["I", "sign"],
        ["G", "sign"],
        ["T", "sign"],
        ["O", "sign"],
        ["E", "sign"],
    ]
    assert parts(cored(record, *(span for span in record.core if span.kind == "text"))) == [
        [x] for x in "BIGTOE"
    ]


def test_other_prompts_are_one_clause():
    include = [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}]
    for prompt, metadata in (
        ("a small house", {}),
        ("a photo of a dog and a cat", {"include": include}),
    ):
        record = cored(
            record_of(prompt, metadata)
        )  # of the preference task, whose reward knows no clauses
        assert clause_records(record) == [record]


def test_scattered_weights_lie_on_other_words_and_keep_their_number():
    weights = np.zeros((2, 20), np.float32)
    weights[0, 3], weights[1, 5], weights[1, 6] = 1.0, 0.5, 2.0
    words = np.zeros(20, bool)
    words[[1, 2, 8, 9]] = True
    moved = scattered(weights, words, 1)
    assert not moved[:, ~words].any()
    assert [sorted(row[row > 0]) for row in moved] == [[1.0], [0.5, 2.0]]
    assert (scattered(weights, words, 1) == moved).all() and (
        scattered(weights, words, 2) != moved
    ).any()


def test_scattered_weights_where_nearly_everything_is_core():
    weights, words = np.ones((1, 4), np.float32), np.zeros(4, bool)
    assert not scattered(weights, words, 0).any(), "nothing but core: no control, a flat map"
    weights[0, 2], words[2] = 0, True
    assert scattered(weights, words, 0).tolist() == [[0, 0, 3, 0]], "what it stands for is not lost"


@pytest.mark.parametrize("encoders", [{"clip": 1.0, "t5": 1.0}, {"clip": 1.0, "t5": 0.0}])
def test_other_words_are_neither_core_nor_padding(tokenizers, encoders):
    record = cored(
        record_of("a photo of a dog", {"include": [{"class": "dog", "count": 1}]}, "geneval")
    )
    found = require_core_tokens(record, tokenizers, LENGTHS, ALL_KINDS, encoders)
    assert not (found.others & (found.weights > 0)).any()
    clip, t5 = found.others[: LENGTHS[0]], found.others[LENGTHS[0] :]
    assert clip[:16].any() and not clip[0] and not clip[-1] and t5.any() == (encoders["t5"] > 0)
