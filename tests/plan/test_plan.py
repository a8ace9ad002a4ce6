"""`star plan`: its figures, what it refuses, and what it prints."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from star.cli import main
from star.config.params import TASKS
from star.config.reading import load_params
from star.plan import hours, make_plan
from star.plan.configs import SD35_MEDIUM, known_models
from star.plan.models import parameters_of
from star.plan.result import Operations
from star.system.errors import StarError
from tests.helpers.plans import pipeline
from tests.helpers.training import changed

PARAMS = load_params(Path("presets/miniature-full.yaml"))
PRESET = load_params(Path("presets/sd35m-8gpu-geneval.yaml"))
ENCODERS = 123_650_304, 694_659_840, 4_762_310_656  # parameters of the published models
TRANSFORMER, POSITIONS, VAE = 2_243_171_520, 384**2 * 1536, 83_819_683
DETECTOR, COLORS, PICKSCORE = 68_741_083, 427_616_513, 986_109_441
RECORDED = json.loads(Path("tests/data/plans.json").read_text())
CASE, *OTHERS = RECORDED


@pytest.fixture(scope="module")
def plan():
    return make_plan(PRESET, TASKS, processes=8)


def flat(values, key=""):
    """Return all figures of a plan, by the path of their keys."""
    if isinstance(values, dict):
        return {k: v for name in values for k, v in flat(values[name], f"{key}/{name}").items()}
    return {key: values}


@pytest.mark.parametrize("case", [CASE, *(pytest.param(c, marks=pytest.mark.slow) for c in OTHERS)])
def test_the_figures_are_those_that_were_summed_by_hand(case, capsys):
    """`tests/data/plans.json` was written by closed forms of all sizes and operations."""
    name, processes, device = case.split()
    options = f"--json --params presets/{name}.yaml --processes {processes} --device {device}"
    options += f" --tflops 100 --task {' '.join(RECORDED[case]['tasks'])}"
    assert main(["plan", *options.split()]) == 0
    found = flat(json.loads(capsys.readouterr().out))
    for key, recorded in flat(RECORDED[case]).items():
        texts = isinstance(recorded, str) or recorded is None
        assert found[key] == (recorded if texts else pytest.approx(recorded, rel=0.02)), key


def test_the_known_models_have_the_published_sizes(plan):
    known = pipeline(PRESET.model)
    assert tuple(map(parameters_of, known.encoders)) == ENCODERS
    assert (known.frozen, known.positions) == (TRANSFORMER, POSITIONS)
    assert parameters_of(known.vae) == VAE
    assert known.adapter == (8 * 24 - 1) * 2 * PRESET.model.lora_rank * 1536
    rewards = {name: task.memory.resident["reward model"] for name, task in plan.tasks.items()}
    assert rewards == {"geneval": 4 * (DETECTOR + COLORS), "ocr": 0, "preference": 4 * PICKSCORE}


def test_hours_are_operations_over_the_rate():
    found = hours(Operations(72 * 10**14, 36 * 10**14, 10**14, held_out=18 * 10**14), 4, 0.5)
    expected = {"rollout": 1, "update": 0.5, "held_out": 0.25, "evaluation": 1 / 18}
    assert found == pytest.approx(expected)


def test_host_memory_and_the_prompt_cache(plan):
    assert [round(task.prompt_cache / 1e9) for task in plan.tasks.values()] == [84, 17, 34]
    opened = 4 * (TRANSFORMER + POSITIONS + VAE) + 2 * sum(ENCODERS)
    assert plan.host == opened + 2**32 + PRESET.rewards.ocr.workers * 2**29


def geneval(**keys):
    """The miniature with a neural detector and other values of `rewards.geneval`."""
    section = dataclasses.replace(PRESET.rewards.geneval, **keys)
    return changed(PARAMS, rewards={"geneval": section})


@pytest.mark.parametrize(("key", "left"), [("path", COLORS), ("color_path", DETECTOR)])
def test_a_reward_model_of_unknown_size_is_named_and_the_other_counted(key, left):
    found = make_plan(geneval(**{key: "someone/model"}), ["geneval"])
    assert len(found.notes) == 1 and "someone/model" in found.notes[0]
    assert found.tasks["geneval"].memory.resident["reward model"] == 4 * left


def test_a_method_that_trains_for_another_length_is_named():
    methods = {**PARAMS.methods, "star": {"epochs": 12, "updates_per_epoch": 1}}
    given = changed(PARAMS, methods=methods, runs={"geneval": ["star", "flow_grpo"]})
    assert make_plan(given, ["geneval"]).notes == ["star trains on 1,536 images in 12 updates"]


def test_another_hub_id_gets_the_arithmetic_alone(capsys, default_values, write_params):
    default_values["model"]["path"] = "someone/another-sd3"
    assert main(["plan", "--params", str(write_params(default_values))]) == 0
    text = capsys.readouterr().out
    assert "1,536" in text and "GiB" not in text and "someone/another-sd3" in text


def write_pipeline(folder, part, config):
    """Write SD3.5 Medium's config files, one part's replaced, to a folder."""
    for name, values in (known_models()[SD35_MEDIUM] | {part: config}).items():
        (folder / name).mkdir()
        file = "tokenizer_config.json" if name == "tokenizer" else "config.json"
        (folder / name / file).write_text(values if isinstance(values, str) else json.dumps(values))
    return changed(PARAMS, model={"path": str(folder)})


TRANSFORMER_CONFIG = known_models()[SD35_MEDIUM]["transformer"]


@pytest.mark.parametrize(
    ("part", "config", "named"),
    [
        ("transformer", {}, "transformer/config.json: no 'num_layers'"),
        ("text_encoder_3", "[]", "text_encoder_3/config.json: no 'd_model'"),
        ("vae", "{", "vae/config.json"),
        ("transformer", TRANSFORMER_CONFIG | {"patch_size": "two"}, "make no model"),
        ("transformer", TRANSFORMER_CONFIG | {"num_attention_heads": 0}, "make no model"),
    ],
)
def test_config_files_of_no_pipeline_are_refused(tmp_path, part, config, named):
    params = write_pipeline(tmp_path, part, config)
    with pytest.raises(StarError, match=named) as refused:
        make_plan(params, ["ocr"])
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_directory_of_another_reward_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr"}))
    with pytest.raises(StarError, match="no 'backbone_config'; is rewards.geneval.path"):
        make_plan(geneval(path=str(tmp_path)), ["geneval"])


def test_what_the_command_prints(capsys):
    asked = ["--params", "presets/miniature-full.yaml", "--task", "ocr", "preference"]
    assert main(["plan", *asked, "--device", "cpu", "--tflops", "0.1"]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert ["images", "per", "epoch", "128", "8", "groups"] in lines
    assert ["one", "training", "ocr", "preference"] in lines
    assert ["forward", "and", "backward:", "update", "6,120", "6,120"] in lines
    assert ["peak", "phase", "update", "update", "decoding"] in lines and "hours: update" in text
    assert "total at the peak" in text and max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("option", [["--processes", "0"], ["--tflops", "nan"], ["--tflops", "-1"]])
def test_options_must_be_positive(option, capsys):
    with pytest.raises(SystemExit):
        main(["plan", *option])
    assert "positive" in capsys.readouterr().err


def test_what_is_refused_is_refused_before_torch_is_imported(
    tmp_path, default_values, write_params
):
    """Processes that cannot share, and a folder that is no pipeline."""
    default_values["model"]["path"] = str(tmp_path)
    code = (
        "import sys\nfrom star.cli import main\n"
        "assert main(['plan', '--processes', '7']) == 1\n"
        f"assert main(['plan', '--params', '{write_params(default_values)}']) == 1\n"
        "assert not {'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "transformer/config.json" in done.stderr
