"""`star plan`: arithmetic worked by hand, refusals, memory that follows the parameters, and what
the command prints."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from star.plan.shapes import read_pipeline

from star.cli import main
from star.config.params import load_params
from star.plan import make_plan
from star.plan.counts import Counts, Passes, count, count_passes
from star.plan.memory import Sequence, decoding
from star.system.errors import StarError

PARAMS = load_params(Path("params.yaml"))
MEDIUM = "stabilityai/stable-diffusion-3.5-medium"


def changed(params=PARAMS, **sections):
    replaced = {
        name: dataclasses.replace(getattr(params, name), **keys) for name, keys in sections.items()
    }
    return dataclasses.replace(params, **replaced)


PUBLISHED = changed(
    model={
        "path": MEDIUM,
        "resolution": 512,
        "t5_tokens": 128,
        "guidance_scale": 4.5,
        "lora_rank": 32,
    },
    rollout={"steps": 10, "window": [0, 9], "same_latent": False, "batch": 9},
    train={
        "prompts_per_epoch": 48,
        "group_size": 24,
        "updates_per_epoch": 2,
        "epochs": 100,
        "kl_beta": 0.04,
    },
)


@pytest.mark.parametrize(
    ("processes", "own", "accumulation"), [(1, 128, 64), (8, 16, 8), (32, 4, 2)]
)
def test_the_arithmetic_of_the_published_recipe(processes, own, accumulation):
    """48 x 24 = 1,152 images = 128 batches of 9; 64 of them an update."""
    assert count(PUBLISHED, processes) == Counts(
        processes=processes,
        groups=48,
        images_per_epoch=1152,
        batches_per_epoch=128,
        batches_per_process=own,
        batches_per_update=64,
        accumulation=accumulation,
        updates_per_epoch=2,
        updates=200,
        images=115_200,
    )


def test_passes_of_the_published_recipe():
    """Each image: 10 steps of rollout, 9 of update and of its KL, with two branches of
    guidance."""
    tested = 192 + 96 + 384
    expected = Passes(
        115_200 * 10 * 2, 115_200 * 9 * 2, 115_200 * 9 * 2, tested * PARAMS.evaluate.steps * 2
    )
    assert count_passes(PUBLISHED, PUBLISHED.allocation) == expected


def test_passes_that_a_group_shares():
    """params.yaml: 8 x 16 images, one noise a group, 8 steps of which the first two are trained;
    no guidance. The groups' first step is one: 8 + 7 x 128 sequences to draw, 8 + 128 to learn, 4
    for the KL's log (a batch's)."""
    found = count_passes(PARAMS, PARAMS.allocation)
    assert found == Passes(45 * (8 + 7 * 128), 45 * (8 + 128), 45 * 4, 672 * 8)
    guided = count_passes(PARAMS, dataclasses.replace(PARAMS.allocation, source="guidance"))
    assert guided.rollout - found.rollout == 2 * found.update, "two more passes a trained step"
    alone = changed(rollout={"same_latent": False}, train={"kl_form": "none"})
    assert count_passes(alone, alone.allocation) == Passes(45 * 8 * 128, 45 * 2 * 128, 0, 672 * 8)


def test_a_sliding_window_moves_what_is_shared():
    """Window [0, 2] of 4 steps over 4 epochs: it starts at 0, 1, 0, 1; up to its start a group is
    one."""
    slid = changed(rollout={"steps": 4, "slide_every": 1}, train={"epochs": 4})
    assert count_passes(slid, slid.allocation).rollout == 2 * (8 + 3 * 128) + 2 * (2 * 8 + 2 * 128)


def test_processes_that_cannot_share_are_refused_with_those_that_can():
    with pytest.raises(StarError, match="7 processes .* launch 1, 2, 4, 8, 16, 32, 64, or"):
        make_plan(PUBLISHED, ["ocr"], processes=7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rollout": {"batch": 9}},
            "one must divide the other; use a batch of 1, 2, 3, 4, 6, 8, 12, 24, 48, 72,",
        ),
        (
            {"rollout": {"batch": 7}},
            "does not divide .* = 1152; use one of 1, 2, 3, 4, 6, 8, 12, 24, 48,",
        ),
        (
            {"rollout": {"batch": 288}, "train": {"updates_per_epoch": 3}},
            "the 4 rollout batches .* one of 1, 2, 4, or",
        ),
    ],
)
def test_numbers_that_do_not_divide_are_refused_with_those_that_do(
    default_values, write_params, capsys, changes, message
):
    default_values["train"] |= {"prompts_per_epoch": 48, "group_size": 24} | changes.get(
        "train", {}
    )
    default_values["rollout"] |= changes["rollout"]
    path = write_params(default_values)
    with pytest.raises(StarError, match=message):
        load_params(path)
    assert main(["plan", "--params", str(path)]) == 1
    assert capsys.readouterr().err.startswith("star plan: error: ")


def total(params, task="ocr", **options):
    return make_plan(params, [task], **options).tasks[task].memory


def test_memory_follows_the_parameters():
    base = total(PUBLISHED)
    assert base.peak == "update" and base.total == sum(base.resident.values()) + max(
        base.phases.values()
    )
    assert base.resident["transformer, float32"] == 4 * (2_243_171_520 + 384**2 * 1536)
    assert base.resident["text encoders"] == 2 * (123_650_304 + 694_659_840 + 4_762_310_656)
    cached = total(changed(PUBLISHED, model={"prompt_cache": "cache"}))
    assert cached.resident["text encoders"] == 0 and cached.total < base.total
    assert cached.phases["encoding prompts"] > base.resident["text encoders"], (
        "they are there while they encode"
    )
    lighter = total(changed(PUBLISHED, model={"gradient_checkpointing": True, "vae_slicing": True}))
    sizes = base.alternatives
    assert lighter.alternatives == sizes
    assert (
        sizes["update, gradient_checkpointing true"]
        < sizes["update, gradient_checkpointing false"] / 5
    )
    assert sizes["decoding, vae_slicing true"] < sizes["decoding, vae_slicing false"] / 5
    saved = (
        sizes["update, gradient_checkpointing false"] - sizes["update, gradient_checkpointing true"]
    )
    assert base.phases["update"] - lighter.phases["update"] == saved
    assert total(PUBLISHED, processes=8).trajectories == base.trajectories / 8


def test_the_activations_grow_with_the_batch_and_the_cast_weights_do_not():
    """Three batches in steps of one size: a constant part, the cast copies of the frozen weights,
    and a linear one."""
    one, two, three = (
        total(changed(PUBLISHED, rollout={"batch": size})).alternatives[
            "update, gradient_checkpointing false"
        ]
        for size in (8, 16, 24)
    )
    assert three - two == two - one
    # In widths squared, two bytes each: block 0; 1 to 12, with a second attention; 13 to 22; 23,
    # whose text ends.
    squares = 18 + 12 * (24 + 4) + 10 * 24 + 15
    assert one - (two - one) == pytest.approx(2 * squares * 1536**2, rel=0.05), (
        "the rest is the adapter's"
    )


def test_hours_are_operations_over_the_rate():
    plan = make_plan(PUBLISHED, ["ocr"], processes=8, tflops=100.0).tasks["ocr"]
    assert plan.hours["update"] == pytest.approx(plan.operations.update / 8 / 100e12 / 3600)
    assert plan.hours["evaluation"] == pytest.approx(plan.operations.evaluation / 100e12 / 3600)
    one = make_plan(PUBLISHED, ["ocr"]).tasks["ocr"]
    assert one.hours is None and one.operations == plan.operations


def test_another_hub_id_gets_the_arithmetic_alone(capsys, default_values, write_params):
    default_values["model"]["path"] = "someone/another-sd3"
    assert main(["plan", "--params", str(write_params(default_values))]) == 0
    text = capsys.readouterr().out
    assert "5,760" in text and "GiB" not in text
    assert "memory are unknown without the files of someone/another-sd3" in text


def test_a_directory_without_its_files_is_an_error(tmp_path):
    with pytest.raises(StarError, match="transformer/config.json"):
        make_plan(changed(model={"path": str(tmp_path)}), ["ocr"])
    part = tmp_path / "transformer"
    part.mkdir()
    for other in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        (tmp_path / other).mkdir()
        (tmp_path / other / "config.json").write_text("{}")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text("{}")
    (part / "config.json").write_text("{}")
    with pytest.raises(StarError, match="no 'num_layers'"):
        make_plan(changed(model={"path": str(tmp_path)}), ["ocr"])


def test_what_the_command_prints(capsys):
    assert main(["plan", "--task", "ocr", "preference", "--device", "cpu", "--tflops", "0.1"]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert ["images", "an", "epoch", "128", "8", "groups"] in lines
    assert ["one", "training", "ocr", "preference"] in lines
    assert ["forward", "and", "backward:", "update", "6,120", "6,120"] in lines
    assert ["peak", "phase", "update", "update", "decoding"] in lines and "hours: update" in text
    assert "hours: evaluation by one process" in text and "host memory" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_json_has_the_same_figures(capsys):
    assert main(["plan", "--json", "--task", "geneval"]) == 0
    values = json.loads(capsys.readouterr().out)
    memory = make_plan(PARAMS, ["geneval"]).tasks["geneval"].memory
    assert values["counts"]["images"] == 5760 and list(values["tasks"]) == ["geneval"]
    assert values["tasks"]["geneval"]["memory"]["total"] == memory.total
    assert values["tasks"]["geneval"]["memory"]["peak"] == memory.peak


PRESET = load_params(Path("presets/sd35m-8gpu-geneval.yaml"))


def test_an_evaluation_has_the_judge_the_detector_and_the_encoders_on_its_device():
    plan = make_plan(PRESET, ["geneval", "ocr", "preference"], processes=8)
    memory = plan.evaluation
    detector, judge = (
        plan.tasks[task].memory.resident["reward model"] for task in ("geneval", "preference")
    )
    assert memory.phases["scoring"] > judge + detector > judge > 0
    encoders = 2 * (123_650_304 + 694_659_840 + 4_762_310_656)
    encoding = memory.phases["encoding prompts"] - encoders
    assert 0 < encoding < encoders, "the judge comes when the encoders have left"
    kept = make_plan(changed(PRESET, model={"prompt_cache": None}), ["ocr"]).evaluation
    assert kept.resident["text encoders"] == encoders
    assert kept.phases["encoding prompts"] == encoding + judge
    larger = make_plan(changed(PRESET, evaluate={"batch": 32}), ["ocr"]).evaluation
    models = 2 * judge  # the preference task's reward is a second copy
    assert larger.phases["denoising"] - models == 2 * (memory.phases["denoising"] - models)


def test_host_memory_and_the_prompt_cache_of_a_preset(capsys):
    plan = make_plan(PRESET, ["geneval", "ocr", "preference"], processes=8)
    assert [round(task.prompt_cache / 1e9) for task in plan.tasks.values()] == [84, 17, 34]
    opened = sum(
        plan.tasks["ocr"].memory.resident[name] for name in ("transformer, float32", "VAE, float32")
    )
    assert plan.host > opened + 2 * (123_650_304 + 694_659_840 + 4_762_310_656)
    assert main(["plan", "--params", "presets/sd35m-8gpu-geneval.yaml", "--processes", "8"]) == 0
    text = capsys.readouterr().out
    assert (
        f"{plan.host * 8 / 2**30:,.0f} for 8 on one machine" in text
        and "GB on disk: prompt cache" in text
    )


def test_a_sample_grid_denoises_all_its_images_at_once():
    phases = total(PRESET).phases
    denoised = (phases["denoising"] - total(PRESET).trajectories) / PRESET.rollout.batch * 16
    assert phases["sample grid"] == denoised > 0


@pytest.mark.parametrize("option", [["--processes", "0"], ["--tflops", "nan"], ["--tflops", "-1"]])
def test_options_must_be_positive(option, capsys):
    with pytest.raises(SystemExit):
        main(["plan", *option])
    assert "positive" in capsys.readouterr().err


def test_a_plan_needs_no_torch_and_about_a_second():
    code = (
        "import sys\nfrom star.cli import main\nassert main(['plan']) == 0\n"
        "assert not {'torch', 'diffusers', 'transformers', 'accelerate'} & set(sys.modules)"
    )
    before = os.times()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    after = os.times()  # processor time: other work on the machine does not count
    assert (
        after.children_user + after.children_system - before.children_user - before.children_system
        < 3
    )


def test_the_reward_model_is_where_it_scores():
    pickscore = dataclasses.replace(PUBLISHED.rewards.preference, path="yuvalkirstain/PickScore_v1")
    params = changed(PUBLISHED, rewards={"preference": pickscore})
    assert total(params, "preference").resident["reward model"] == 4 * 986_109_441
    assert total(params, "ocr").resident["reward model"] == 0
    unknown = dataclasses.replace(pickscore, path="someone/preference")
    plan = make_plan(changed(PUBLISHED, rewards={"preference": unknown}), ["preference"])
    assert plan.notes == ["the memory of someone/preference is unknown and not counted"]


def test_the_fullest_moments_of_a_long_text_and_of_sliced_images():
    """By hand, the miniature in float32: 448 + 16 text and 64 image tokens, 128 wide; images of 3
    x 64 x 64.

    In the text's MLP 12 values a text token (block's input, attention's output, sum, norm, 4 before
    and 4 after the GELU) and 7 an image token (input, two attentions' outputs, sum, two norms,
    MLP's output). Images are three times there while grey levels are made of them, more than what
    is left of one slice."""
    long = changed(model={"precision": "no", "t5_tokens": 448})
    pipeline = read_pipeline(long.model.path)
    assert Sequence.of(long, pipeline, "cpu").forward() == 4 * 128 * (12 * 464 + 7 * 64)
    assert decoding(pipeline.vae, 64, 64, slicing=True, copied=True) == 4 * 64 * 3 * (3 * 64 * 64)
    one = decoding(pipeline.vae, 64, 1, slicing=True, copied=True)
    assert decoding(pipeline.vae, 64, 2, slicing=True, copied=True) == one + 4 * 3 * 64 * 64, (
        "the first image is kept"
    )


def test_the_measurement_agrees_in_every_phase():
    """`benchmarks/memory.py`'s committed bytes, and what is estimated now."""
    from benchmarks.memory import CASES, estimated
    from benchmarks.memory import changed as case_of

    figures = json.loads(Path("benchmarks/figures/memory.json").read_text())["cases"]
    assert list(figures) == list(CASES)
    for case, phases in figures.items():
        for phase, planned in estimated(case_of(PARAMS, case)).items():
            assert planned == pytest.approx(phases[phase]["measured"], rel=0.15), (case, phase)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the kernel's high-water mark is Linux's"
)
def test_the_memory_of_a_training_is_the_estimated_one():
    from benchmarks.memory import compare

    ratios = {
        phase: found["ratio"]
        for phase, found in compare("vae_slicing", Path("params.yaml")).items()
    }
    assert ratios == pytest.approx(dict.fromkeys(ratios, 1), abs=0.15)
