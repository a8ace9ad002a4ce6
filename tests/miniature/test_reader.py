"""The second reader of signs: every letter in every slot, every word, shifts, noise, and images
without a sign."""

import numpy as np
import pytest
from scipy import ndimage

from star.miniature.reader import MIN_CORRELATION, SHIFT, letter_scores, read_letters
from star.miniature.world import (
    BOARD,
    CLASSES,
    LETTER_SLOTS,
    LETTERS,
    Scene,
    SceneObject,
    render,
    sample_scene,
)
from star.prompts.geneval import COLORS, TAGS, sample_metadata
from star.prompts.words import WORDS
from star.system.errors import StarError

X0, Y0, X1, Y1 = BOARD
FACE = np.s_[Y0 + 1 : Y1 - 1, X0 + 1 : X1 - 1]  # the board inside its edge


def signs(words):
    return np.stack([render(Scene(text=word)) for word in words])


def random_words(count, seed):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(LETTERS), size=rng.integers(2, 6))) for _ in range(count)]


def accuracy(images, words):
    return np.mean([read == word for read, word in zip(read_letters(images), words, strict=True)])


def without(image, slot):
    """The sign with one slot wiped."""
    wiped = image.copy()
    left, right = LETTER_SLOTS[slot] - 6, LETTER_SLOTS[slot] + 6
    wiped[Y0 + 1 : Y1 - 1, left:right] = 250
    return wiped


def test_every_letter_is_read_in_every_slot():
    words = [letter * 5 for letter in LETTERS]
    assert read_letters(signs(words)) == words


def test_every_pair_of_neighbours_is_read():
    words = [first + second for first in LETTERS for second in LETTERS]
    assert read_letters(signs(words)) == words


def test_every_word_of_the_prompts_is_read():
    assert read_letters(signs(WORDS)) == list(WORDS)


def test_rendered_letters_match_their_templates():
    scores = letter_scores(signs(["IAIEI"]))[0]
    for slot, letter in enumerate("IAIEI"):
        assert scores[slot].argmax() == LETTERS.index(letter)
        assert scores[slot].max() > 0.95


@pytest.mark.parametrize("shift", [(0, 2), (-2, 1), (2, -2)])
def test_letters_off_their_places_are_read(shift):
    words = random_words(200, seed=1)
    images = signs(words)
    for image in images:
        face = image[FACE]
        image[FACE] = ndimage.shift(face, (*shift, 0), order=0, mode="nearest")
    assert accuracy(images, words) >= 0.95


def test_letters_further_off_than_the_shift_are_not_made_up():
    image = render(Scene(text="HE"))
    image[FACE] = np.roll(image[FACE], -SHIFT - 9, axis=0)
    assert len(read_letters(image[None])[0]) <= 2


def test_an_empty_board_reads_as_nothing():
    image = render(Scene(text="II"))
    image[FACE] = 250
    assert read_letters(image[None]) == [""]
    assert (letter_scores(image[None]) == -1).all()


def test_uniform_images_and_noise_read_as_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    flat = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (0, 60, 128, 170, 255)])
    assert read_letters(noise) == [""] * 20
    assert read_letters(flat) == [""] * 5


def test_objects_are_not_text():
    rng = np.random.default_rng(0)
    scenes = [
        sample_scene(sample_metadata(tag, CLASSES, rng), rng) for tag in TAGS for _ in range(20)
    ]
    scenes += [
        Scene(objects=(SceneObject(name, color, 32, 32, 36),))
        for name in CLASSES
        for color in COLORS
    ]
    assert not any(read_letters(np.stack([render(scene) for scene in scenes])))


def test_empty_slots_are_left_out():
    sign = render(Scene(text="TEXTS"))
    reads = read_letters(np.stack([without(sign, slot) for slot in range(5)]))
    assert reads == ["EXTS", "TXTS", "TETS", "TEXS", "TEXT"]


def test_blots_and_halves_of_letters_are_illegible():
    blot, half = render(Scene(text="TEXTS")), render(Scene(text="TEXTS"))
    blot[27:37, 28:37] = 10
    half[24:33, 27:38] = 250
    assert (letter_scores(np.stack([blot, half]))[:, 2].max(1) < MIN_CORRELATION).all()
    assert read_letters(np.stack([blot, half])) == ["TETS", "TETS"]


def test_letters_with_a_dent_are_read():
    image = render(Scene(text="BAKED"))
    image[30:33, 17:20] = 250
    assert read_letters(image[None]) == ["BAKED"]


@pytest.mark.parametrize(
    "blur, noise, faded, least", [(0.6, 8, 1.0, 0.99), (1.0, 20, 1.0, 0.98), (0.6, 8, 0.6, 0.98)]
)
def test_degraded_signs_are_read(blur, noise, faded, least):
    words, rng = random_words(200, seed=2), np.random.default_rng(3)
    images = 250 - faded * (250 - signs(words).astype(np.float32))
    images = ndimage.gaussian_filter(images, (0, blur, blur, 0)) + rng.normal(
        0, noise, images.shape
    )
    assert accuracy(np.clip(images, 0, 255).astype(np.uint8), words) >= least


def test_a_reading_is_the_image_s_own():
    words = random_words(150, seed=4)  # several chunks
    images = signs(words)
    order = np.random.default_rng(5).permutation(len(words))
    assert read_letters(images[order]) == [words[index] for index in order]
    assert read_letters(images[7:8]) == [words[7]]
    assert np.allclose(letter_scores(images)[100], letter_scores(images[100:101])[0], atol=1e-5)


def test_images_are_left_as_they_are_and_may_be_none():
    images = signs(["STOP"])
    before = images.copy()
    images.flags.writeable = False
    assert read_letters(images) == ["STOP"]
    assert (images == before).all()
    assert read_letters(images[:0]) == []


@pytest.mark.parametrize(
    "shape, dtype", [((1, 32, 32, 3), np.uint8), ((64, 64, 3), np.uint8), ((1, 64, 64, 3), float)]
)
def test_other_images_are_refused(shape, dtype):
    with pytest.raises(StarError, match="uint8 images of 64x64"):
        read_letters(np.zeros(shape, dtype))
