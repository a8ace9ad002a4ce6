"""The benchmarks start, and their random model is SD3.5 Medium."""

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig

from benchmarks import orchestration
from benchmarks.credit import places
from star.doctor.random_weights import random_transformer, random_vae, sharing
from star.doctor.reward_models import random_clip, random_detector
from star.miniature.world import CLASSES, GRID_SIZE, render, sample_scene
from star.plan.models import parameters_of
from star.policy.sd3 import LORA_TARGETS
from star.prompts.geneval import TAGS, sample_metadata
from star.prompts.records import PromptRecord
from star.rewards.exact_detector import ExactDetector


@pytest.mark.parametrize("name", sorted(path.stem for path in Path("benchmarks").glob("*.py")))
def test_a_benchmark_finds_what_it_imports(name):
    """Names that move are looked for at import: no benchmark runs in these tests as a whole."""
    importlib.import_module(f"benchmarks.{name}")


def test_the_random_models_have_the_published_sizes():
    """Of 14 layers the last has no second attention; no table of positions is a parameter."""
    with torch.device("meta"):
        whole, cut, vae = random_transformer(), random_transformer(14), random_vae()
        detector, clip = random_detector(), random_clip()
    assert list(map(parameters_of, (whole, vae, detector))) == [
        *(2_243_171_520, 83_819_683, 68_741_083)
    ]
    assert parameters_of(clip) == 427_616_513 and len(cut.transformer_blocks) == 14
    assert cut.transformer_blocks[13].attn2 is None is not cut.transformer_blocks[12].attn2
    assert whole.pos_embed.pos_embed.numel() == 384**2 * 1536


def test_the_tiny_vae_has_the_same_latent():
    with torch.device("meta"):
        tiny, whole = random_vae(tiny=True), random_vae()
        latents = torch.zeros(1, whole.config.latent_channels, 8, 8)
        assert tiny.decode(latents).sample.shape == whole.decode(latents).sample.shape
    assert parameters_of(tiny) < parameters_of(whole) / 500


def test_settings_share_weights_and_nothing_else():
    pipe = StableDiffusion3Pipeline.from_pretrained("models/miniature", dtype=torch.float32)
    one, other = sharing(pipe).transformer, sharing(pipe).transformer
    one.requires_grad_(False).add_adapter(LoraConfig(r=2, target_modules=LORA_TARGETS))
    one.enable_gradient_checkpointing()
    whole = parameters_of(pipe.transformer)
    assert parameters_of(other) == whole < parameters_of(one)
    assert not other.is_gradient_checkpointing
    weights = [
        {p.data_ptr() for p in t.parameters() if not p.requires_grad}
        for t in (one, sharing(pipe).transformer)
    ]
    assert weights[0] == weights[1] == {p.data_ptr() for p in pipe.transformer.parameters()}


@pytest.mark.parametrize("tag", TAGS)
def test_places_are_the_objects_and_where_a_missing_one_would_be(tag):
    rng = np.random.default_rng(3)
    for _ in range(12):
        line = sample_metadata(tag, CLASSES, rng)
        record = PromptRecord("a", "geneval", line["prompt"], line)
        scene = sample_scene(line, rng, "crowded")
        gone = scene.objects[-1]
        lacking = replace(scene, objects=scene.objects[:-1])
        for shown in (scene, lacking):
            masks = places(record, render(shown), ExactDetector())
            for clause, mask in zip(line["include"], masks, strict=True):
                its = [o for o in scene.objects if o.name == clause["class"]]
                assert all(mask[o.y, o.x] for o in its)
                if shown is scene or gone not in its:
                    others = {*scene.objects, *scene.unnamed} - {*its}
                    assert not any(mask[o.y, o.x] for o in others)
        if "position" in line["include"][1 % len(line["include"])]:
            assert mask.sum() == (2 * (GRID_SIZE // 2 + 1)) ** 2  # the one place that is left


LOG = """host: here
[Wed Nov 25 21:15:05 2026]
localrule prepare_prompts:
    output: a
    jobid: 4
    benchmark: logs/a.tsv

[Wed Nov 25 21:15:06 2026]
rule train_policy:
    jobid: 12

[Wed Nov 25 21:15:09 2026]
Finished jobid: 4 (Rule: prepare_prompts)
1 of 3 steps (33%) done
[Wed Nov 25 21:16:06 2026]
Finished jobid: 12 (Rule: train_policy)
[Wed Nov 25 21:17:00 2026]
rule write_report:
    jobid: 1
"""


def test_the_jobs_of_a_log_and_the_time_that_they_cover():
    first, second = orchestration.job_intervals(LOG)  # the third did not end
    assert (first[1] - first[0], second[1] - second[0], second[0] - first[0]) == (4, 60, 1)
    assert orchestration.covered([first, second]) == 61
    assert orchestration.covered([(0, 1), (3, 5), (4, 4.5)]) == 3
    assert orchestration.covered([]) == 0
