"""The base model: tokenizers, a tiny resumable training."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from transformers import CLIPTokenizer, T5Tokenizer

from star.miniature.world import Scene, SceneObject
from star.pretraining.config import GeneratorConfig
from star.pretraining.generator import place_weights, pretrain
from star.pretraining.tokenizers import save_clip_tokenizer, save_t5_tokenizer

ROOT = Path(__file__).parents[2]


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


def test_named_places_weigh_more_and_ever_less():
    config = GeneratorConfig(named_steps=100, named_weight=5.0)
    scenes = [Scene(objects=(SceneObject("car", "red", 16, 16, 14),)), Scene(text="HI")]
    first, later = (place_weights(scenes, step, config) for step in (0, 75))
    assert first[0, 2:6, 2:6].eq(5.0).all() and later[0, 2:6, 2:6].eq(2.0).all()
    assert first[0].sum() == 16 * 16 + 4 * 4 * 4 and first[1].eq(1.0).all()


@pytest.mark.slow
def test_pretraining_resumes_exactly_and_gives_a_pipeline(tmp_path):
    config = GeneratorConfig(
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
    for part in (dataclasses.replace(config, stop=2), config):
        pretrain(tmp_path / "resumed", tmp_path / "b", part)
    straight, resumed = (
        load_file(tmp_path / name / "transformer" / "diffusion_pytorch_model.safetensors")
        for name in ("straight", "resumed")
    )
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    log = (tmp_path / "b" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [0, 1, 1, 2, 3, 4]
    # Another world, from these weights.
    straight = tmp_path / "straight"
    other = dataclasses.replace(config, world="crowded", start=str(straight))
    pretrain(tmp_path / "crowded", tmp_path / "c", other)
    file = Path("vae", "diffusion_pytorch_model.safetensors")
    before, after = (load_file(folder / file) for folder in (straight, tmp_path / "crowded"))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}  # not the encoder
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path / "straight", dtype=torch.float32)
    shape = pipe.transformer.config
    assert shape.dual_attention_layers and shape.qk_norm == "rms_norm"
