"""The preference stand-in: its pairs, its training."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from star.miniature import world
from star.pretraining.config import PreferenceConfig
from star.pretraining.data import TAG_WEIGHTS, sample
from star.pretraining.loop import append_log
from star.pretraining.preference import new_model, new_processor, pretrain_preference
from star.pretraining.preference_card import pair_accuracy
from star.pretraining.preference_pairs import (
    ATTRIBUTE_SIZES,
    CORRUPTIONS,
    WRONG_KINDS,
    caption_of,
    corrupt,
    sample_pairs,
    scene_attributes,
    wrong_caption,
)

STAND_IN = Path(__file__).parents[2] / "models" / "miniature-preference"
TINY = PreferenceConfig(
    steps=4,
    batch=8,
    wrong=2,
    width=32,
    vision_layers=1,
    text_layers=1,
    save_every=1,
    log_every=1,
    warmup=1,
    decay_share=0,
    held_out=3,
)


# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize("tag", TAG_WEIGHTS)
def test_caption_writes_the_prompt_and_a_wrong_one_differs(tag):
    rng = np.random.default_rng(6)
    for _ in range(30):
        item = sample(tag, rng)
        assert caption_of(item.metadata) == item.prompt
        for kind in WRONG_KINDS[tag]:
            before = json.dumps(item.metadata)
            assert wrong_caption(item, kind, rng) != item.prompt
            assert json.dumps(item.metadata) == before


@pytest.mark.parametrize("of", world.WORLDS)
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruption_grows_with_severity_and_leaves_its_input(kind, of):
    rng = np.random.default_rng(7)
    distances = {0.0: 0.0, 1.0: 0.0}
    for index in range(20):
        item, other = sample("color_attr", rng, of), sample("counting", rng, of)
        before = item.image.copy()
        for severity in distances:
            worse = corrupt(item.image, kind, severity, np.random.default_rng(index), other.image)
            assert worse.shape == item.image.shape and worse.dtype == np.uint8
            distances[severity] += float(np.abs(worse.astype(int) - item.image).mean())
        np.testing.assert_array_equal(item.image, before)
    assert 0 < distances[0.0] < distances[1.0]


def test_attributes_name_the_places_in_reading_order():
    left = world.SceneObject("cat", "red", 17, 32, 25)
    right = world.SceneObject("car", "blue", 47, 32, 25)
    attributes = scene_attributes(world.Scene(objects=(right, left)))
    assert attributes[:3] == [2, world.CLASSES.index("cat"), world.CLASSES.index("car")]
    assert attributes[5:7] == [0, 4]  # red, blue
    assert scene_attributes(world.Scene(text="AC"))[9:] == [0, 2, 26, 26, 26]
    for tag in TAG_WEIGHTS:
        attributes = scene_attributes(sample(tag, np.random.default_rng(1)).scene)
        assert all(value < size for value, size in zip(attributes, ATTRIBUTE_SIZES, strict=True))


def test_batches_are_reproducible():
    first, again = (sample_pairs(6, 2, 0.5, np.random.default_rng([0, 1])) for _ in range(2))
    np.testing.assert_array_equal(first.better, again.better)
    np.testing.assert_array_equal(first.worse, again.worse)
    assert first.captions == again.captions and first.wrong == again.wrong
    assert len(first.worse) == 3 and all(len(texts) == 2 for texts in first.wrong)


# ---------------------------------------------------------------- training


def test_resumed_training_equals_uninterrupted_training(tmp_path):
    pretrain_preference(tmp_path / "whole", tmp_path / "work", TINY)
    shutil.copytree(tmp_path / "work" / "tokenizer", tmp_path / "resumed" / "tokenizer")
    half = dataclasses.replace(TINY, steps=2)
    pretrain_preference(tmp_path / "part", tmp_path / "resumed", half)
    # A step that was logged and then lost with the process: it is run, and logged, again.
    append_log(tmp_path / "resumed", {"part": "preference", "step": 3})
    pretrain_preference(tmp_path / "part", tmp_path / "resumed", TINY)
    whole, part = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "part"))
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    start = new_model(new_processor(tmp_path / "work").tokenizer, TINY).half().state_dict()
    still = [name for name, tensor in whole.items() if torch.equal(tensor, start[name])]
    assert still == ["logit_scale"]
    log = (tmp_path / "resumed" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4]


@pytest.mark.slow
def test_training_lowers_the_loss(tmp_path):
    config = dataclasses.replace(TINY, steps=40, log_every=10)
    pretrain_preference(tmp_path / "out", tmp_path / "work", config)
    log = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    names = ("contrast", "captions", "corrupted", "attributes")
    totals = [sum(json.loads(line)[name] for name in names) for line in log]
    assert totals[-1] < totals[0]


# ---------------------------------------------------------------- the committed stand-in


@pytest.mark.slow
def test_stand_in_ranks_fresh_pairs():
    accuracy = pair_accuracy(STAND_IN, 24, seed=77)
    assert np.mean(list(accuracy.captions.values())) > 0.9
    assert np.mean(list(accuracy.images.values())) > 0.9
    assert np.mean(list(accuracy.degrees.values())) > 0.85
    assert min(accuracy.captions.values()) > 0.7


def test_stand_in_is_small_and_of_half_precision():
    tensors = load_file(STAND_IN / "model.safetensors").values()
    assert {each.dtype for each in tensors if each.is_floating_point()} == {torch.float16}
    assert sum(path.stat().st_size for path in STAND_IN.iterdir()) < 3e6
