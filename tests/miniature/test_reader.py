"""The second reader of signs: every letter in every slot, every word, shifts, noise, and images
without a sign."""

import numpy as np
import pytest
from scipy import ndimage

from star.miniature import world
from star.miniature.reader import MIN_CORRELATION, letter_scores, read_letters
from star.miniature.world import BOARD, LETTER_SLOTS, LETTERS, Scene, SceneObject, render
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
    """Return the sign with one slot wiped."""
    wiped = image.copy()
    left, right = LETTER_SLOTS[slot] - 6, LETTER_SLOTS[slot] + 6
    wiped[Y0 + 1 : Y1 - 1, left:right] = 250
    return wiped


EVERY_SLOT = [letter * 5 for letter in LETTERS]
NEIGHBOURS = [first + second for first in LETTERS for second in LETTERS]


@pytest.mark.parametrize("words", [EVERY_SLOT, NEIGHBOURS, list(WORDS)], ids=len)
def test_every_letter_pair_and_word_of_the_prompts_is_read(words):
    assert read_letters(signs(words)) == words


@pytest.mark.parametrize("shift", [(0, 2), (-2, 1), (2, -2)])
def test_letters_off_their_places_are_read(shift):
    words = random_words(200, seed=1)
    images = signs(words)
    for image in images:
        image[FACE] = ndimage.shift(image[FACE], (*shift, 0), order=0, mode="nearest")
    assert accuracy(images, words) >= 0.95


def test_signs_in_a_crowd_are_read():
    words, rng = random_words(100, seed=6), np.random.default_rng(6)
    scenes = [world.sample_scene({"text": word}, rng, "crowded") for word in words]
    assert read_letters(np.stack([render(scene) for scene in scenes])) == words


def test_what_is_no_sign_reads_as_nothing():
    board = render(Scene(text="II"))
    board[FACE] = 250
    assert (letter_scores(board[None]) == -1).all()
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    flat = [np.full((64, 64, 3), value, np.uint8) for value in (0, 60, 128, 170, 255)]
    tags = [tag for tag in TAGS for _ in range(20)]
    scenes = [
        world.sample_scene(sample_metadata(tag, world.CLASSES, rng), rng, name)
        for tag in tags
        for name in world.WORLDS
    ]
    pairs = [(name, color) for name in world.CLASSES for color in COLORS]
    scenes += [Scene(objects=(SceneObject(*pair, 32, 32, 36),)) for pair in pairs]
    images = np.stack([board, *noise, *flat, *map(render, scenes)])
    assert not any(read_letters(images))


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


@pytest.mark.parametrize(
    "blur, noise, faded, least", [(0.6, 8, 1.0, 0.99), (1.0, 20, 1.0, 0.98), (0.6, 8, 0.6, 0.98)]
)
def test_degraded_signs_are_read(blur, noise, faded, least):
    words, rng = random_words(200, seed=2), np.random.default_rng(3)
    images = 250 - faded * (250 - signs(words).astype(np.float32))
    images = ndimage.gaussian_filter(images, (0, blur, blur, 0))
    images += rng.normal(0, noise, images.shape)
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
