"""The miniature's world and its pretraining: scenes obey their metadata, tokenizers, tiny resumable
training."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from transformers import CLIPTokenizer, T5Tokenizer

from star.miniature import world
from star.pretraining.generator import PretrainConfig, pretrain
from star.pretraining.tokenizers import save_clip_tokenizer, save_t5_tokenizer
from star.prompts.geneval import TAGS, sample_metadata


@pytest.mark.parametrize("tag", TAGS)
def test_scenes_obey_their_metadata(tag):
    rng = np.random.default_rng(0)
    for _ in range(50):
        metadata = sample_metadata(tag, world.CLASSES, rng)
        scene = world.sample_scene(metadata, rng)
        assert len(scene.objects) == sum(clause["count"] for clause in metadata["include"])
        for clause in metadata["include"]:
            matching = [o for o in scene.objects if o.name == clause["class"]]
            assert len(matching) == clause["count"]
            assert all(o.color == clause.get("color", o.color) for o in matching)
            if "position" in clause:
                (other,) = (o for o in scene.objects if o.name == metadata["include"][0]["class"])
                dx, dy = matching[0].x - other.x, matching[0].y - other.y
                reach = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[
                    clause["position"][0]
                ]
                assert reach > 20


def test_images_show_palette_on_background():
    scene = world.Scene(objects=(world.SceneObject("apple", "red", 32, 32, 36),))
    image = world.render(scene)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert tuple(image[0, 0]) == world.BACKGROUND
    assert tuple(image[36, 32]) == world.PALETTE["red"]


def test_what_the_world_cannot_draw_is_named():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="no class 'zebra'"):
        world.sample_scene({"include": [{"class": "zebra", "count": 1}]}, rng)
    with pytest.raises(ValueError, match="not 'hello'"):
        world.sample_scene({"text": "hello"}, rng)
    with pytest.raises(ValueError, match="1 to 4 objects"):
        world.sample_scene({"include": [{"class": "cat", "count": 5}]}, rng)


def test_tokenizers_are_reproducible_and_spell_quoted_words(tmp_path):
    for name in ("one", "two"):
        save_clip_tokenizer(tmp_path / name / "clip")
        save_t5_tokenizer(tmp_path / name / "t5")
    for part in ("clip", "t5"):
        files = [tmp_path / name / part / "tokenizer.json" for name in ("one", "two")]
        assert files[0].read_bytes() == files[1].read_bytes()
    clip = CLIPTokenizer.from_pretrained(tmp_path / "one" / "clip")
    t5 = T5Tokenizer.from_pretrained(tmp_path / "one" / "t5")
    words = clip.convert_ids_to_tokens(clip("a photo of four wine glasses").input_ids)
    assert words[1:-1] == ["a</w>", "photo</w>", "of</w>", "four</w>", "wine</w>", "glasses</w>"]
    spelled = t5.convert_ids_to_tokens(t5('a sign that says "STAR"').input_ids)
    assert spelled == ["▁a", "▁sign", "▁that", "▁says", '▁"', "S", "T", "A", "R", '"', "</s>"]


@pytest.mark.slow
def test_pretraining_resumes_exactly_and_gives_a_pipeline(tmp_path):
    config = PretrainConfig(
        vae_steps=2,
        vae_batch=2,
        steps=4,
        stop=4,
        batch=2,
        warmup=1,
        save_every=2,
        log_every=1,
        decay_share=0.5,
    )
    pretrain(tmp_path / "straight", tmp_path / "a", config)
    # A run that is stopped after two steps and goes on.
    half = dataclasses.replace(config, stop=2)
    pretrain(tmp_path / "half", tmp_path / "b", half)
    pretrain(tmp_path / "resumed", tmp_path / "b", config)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    straight, resumed = (
        load_file(tmp_path / "straight" / weights),
        load_file(tmp_path / "resumed" / weights),
    )
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()
    ]
    assert steps == [0, 1, 1, 2, 3, 4]
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path / "straight", dtype=torch.float32)
    assert (
        pipe.transformer.config.dual_attention_layers
        and pipe.transformer.config.qk_norm == "rms_norm"
    )
