"""The benchmarks start, their random model is SD3.5 Medium, and what that of its settings says of
those that fail."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig

from benchmarks import orchestration, scaling, sd35m
from benchmarks.mask2former import random_clip, random_detector
from benchmarks.random_weights import random_transformer, random_vae, sharing
from star.config.reading import load_params
from star.plan.models import parameters_of
from star.policy.sd3 import LORA_TARGETS


@pytest.mark.parametrize("name", sorted(path.stem for path in Path("benchmarks").glob("*.py")))
def test_a_benchmark_finds_what_it_imports(name):
    """Names that move are looked for at import: no benchmark runs in these tests as a whole."""
    importlib.import_module(f"benchmarks.{name}")


def test_the_committed_scaling_is_what_is_counted_today(monkeypatch, capsys):
    """All but the seconds in which a core reads an image, which are measured; a few are read here
    all the same."""
    committed = json.loads(Path("benchmarks/figures/scaling.json").read_text(encoding="utf-8"))
    assert scaling.reading_time(4, 256) > 0
    monkeypatch.setattr(scaling, "reading_time", lambda images, side: committed["ocr_s_a_image"])
    monkeypatch.setattr("sys.argv", ["scaling"])
    scaling.main()
    figures = json.loads(capsys.readouterr().out)
    for row, expected in zip(figures["epochs"], committed["epochs"], strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert figures["assumed"] == committed["assumed"]


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


@dataclass(frozen=True)
class Line:
    seconds: dict[str, float]
    grad_norm: float
    first_ratio_error: float = 0.0


class Run:
    """A trainer whose epochs take so many ``seconds``, or end in ``error``."""

    def __init__(self, *seconds: float, error: Exception | None = None, norm: float = 1.0) -> None:
        self.seconds, self.error, self.norm, self.epochs = seconds, error, norm, 0

    def train_epoch(self) -> Line:
        if self.error:
            raise self.error
        rollout = self.seconds[self.epochs]
        self.epochs += 1
        return Line({"rollout": rollout, "update": 3 * rollout}, self.norm)


def test_figures_of_settings_and_of_those_that_cannot_be_run():
    runs = {
        "base": Run(9.0, 1.0, 2.0, 4.0),
        "compile": Run(99.0, 2.0, 2.0, 2.0),  # compiling belongs to the uncounted epoch
        "fp16": Run(1.0, norm=float("inf")),
        "float32": Run(error=torch.OutOfMemoryError("out of memory\nTried to")),
    }
    timed = sd35m.time_epochs(runs, rounds=3)
    found = {name: sd35m.summary(t, timed["base"], 8, decoding=5.0) for name, t in timed.items()}
    assert found["float32"] is None and timed["float32"].reason == "out of memory"
    assert (
        found["fp16"] is None and "not finite" in timed["fp16"].reason and runs["fp16"].epochs == 1
    )
    assert (
        found["base"]["seconds"] == {"rollout": 2.0, "update": 6.0, "all": 13.0}
        and "ratio" not in found["base"]
    )
    assert found["base"]["images_per_s"] == pytest.approx(
        {"rollout": 4, "update": 8 / 6, "all": 8 / 13}
    )
    ratio = {"median": 1.0, "min": 0.5, "max": 2.0, "rounds": 3}
    assert found["compile"]["ratio"] == {"rollout": ratio, "update": ratio}
    assert found["compile"]["first_epoch_seconds"] == 4 * 99.0


def test_a_base_setting_that_fails_ends_the_benchmark():
    with pytest.raises(RuntimeError, match="no such device"):
        sd35m.time_epochs({"base": Run(error=RuntimeError("no such device"))}, rounds=1)


def test_a_precision_that_crawls_is_not_tried(monkeypatch):
    seconds = {"bf16": 1.0, "no": 4.0, "fp16": 53.0}
    monkeypatch.setattr(sd35m, "layer_seconds", lambda precision, device: seconds[precision])
    refused = {
        name: sd35m.refusal(setting, torch.device("cpu"))
        for name, setting in sd35m.SETTINGS.items()
    }
    reason = "one layer takes 53 times as long as in bf16: not run"
    assert {name: why for name, why in refused.items() if why} == {"fp16": reason}


def test_the_recipe_is_the_presets():
    params = sd35m.with_sizes(load_params(Path("presets/sd35m-1gpu-geneval.yaml")), sd35m.WHOLE)
    assert params.images_per_epoch == params.rollout.batch == 8 and params.rollout.window == [0, 9]
    assert (
        params.model.guidance_scale == 4.5
        and params.model.resolution == 512
        and params.train.kl_beta == 0.04
    )
    assert not params.model.gradient_checkpointing and params.model.precision == "bf16"


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
