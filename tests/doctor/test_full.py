"""`star doctor --full`: all of it on two blocks of the miniature, and what its checks must find."""

import dataclasses
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from star.cli import main
from star.config.params import Params
from star.config.reading import load_params
from star.config.yaml_file import read_values
from star.doctor import correctness, cost, full
from star.doctor.findings import Finding
from star.doctor.forecast import forecast
from star.doctor.subject import RECIPE, Subject
from star.method.attention import plain_attention
from star.plan.operations import Costs, count_operations
from star.policy.rollout import Roller
from star.policy.sd3 import SD3Policy
from star.prompts.prepare import prepare
from star.training.trainer import ALGORITHMS
from tests.helpers.training import raising, short_model


@pytest.fixture(scope="module")
def params_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = read_values(Path("params.yaml"))
    values["model"] |= {"path": short_model(), "precision": "no"}
    values["allocation"]["blocks"] = "all"
    values["rewards"]["ocr"]["workers"] = 1
    file = tmp_path_factory.mktemp("doctor") / "params.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return file


@pytest.fixture(scope="module")
def subject(params_file: Path) -> Subject:
    return Subject(params_file)


@pytest.mark.slow
def test_the_whole_of_it(
    params_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "doctor.json"
    assert main(["doctor", "--full", "--params", str(params_file), "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 100 and "MEND" not in str(lines)
    found = json.loads(output.read_text())
    assert [name for name in full.CHECKS if name not in found or "failed" in found[name]] == []
    assert found["attention"]["chosen"] == "plain"
    assert found["ratios"]["first_ratio_error"] == {"bf16": 0, "fp16": 0, "no": 0}
    assert max(found["maps"]["errors"]) < 1e-5 and len(found["maps"]["errors"]) == 2
    for algorithm in ALGORITHMS:
        memory, speed = found["memory"][algorithm], found["speed"][algorithm]
        assert memory["star"]["resident"]["ratio"] == pytest.approx(1, abs=0.02)
        assert memory["ratio"] == pytest.approx(1, abs=0.01)
        assert all(0.8 < ratio < 1.25 for ratio in memory["star"]["over_plan"].values())
        assert min(speed["images_per_s"].values()) > 0 < found["share"]["update"][algorithm]
    assert set(found["settings"]) >= {"gradient_checkpointing", "compile"}
    assert found["settings"]["compile"]["compile"]["first_ratio_error"] == 0
    assert set(found["presets"]) == {"params"} and found["presets"]["params"]["hours"] > 0


def test_a_recipe_of_another_device_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subject, "_open", lambda self: None)
    assert Subject(Path("presets/sd35m-8gpu-ocr.yaml")).file == Path("params.yaml")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("star.doctor.subject.set_tf32", lambda allowed: None)
    for file in ("params.yaml", "presets/sd35m-8gpu-ocr.yaml"):
        subject = Subject(Path(file))
        assert subject.file == (RECIPE if file == "params.yaml" else Path(file))
        assert subject.params.model.resolution == 512 and subject.params.images_per_epoch == 8
        assert len(prepare("geneval", subject.params.prompts, 0)[0]) == 1, "without a network"


def test_a_check_that_breaks_is_a_line_and_the_others_go_on(
    params_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks = {
        "memory": raising(RuntimeError("no kernel")),
        "maps": lambda subject, found: ([Finding("maps", "slow", "wait", needed=False)], {"a": 1}),
    }
    monkeypatch.setattr(full, "CHECKS", checks)
    command = ["doctor", "--full", "--params", str(params_file)]
    assert main([*command, "--output", str(tmp_path / "found.json")]) == 1
    out, err = capsys.readouterr()
    assert "MEND memory     broke: RuntimeError: no kernel" in out and "-    maps" in out
    assert "cannot run here yet: memory (MEND above)" in err
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["maps"] == {"a": 1} and found["memory"] == {"failed": "RuntimeError: no kernel"}


def test_output_goes_with_full(params_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--params", str(params_file), "--output", "x.json"]) == 1
    assert "--output goes with --full" in capsys.readouterr().err


def mend_of(check: Callable, subject: Subject) -> str:
    return check(subject, {})[0][0].mend


def test_the_exact_mass_of_two_keys() -> None:
    """Queries of zero look at all keys alike; a key that fits has exp(1) of the others' 1."""
    query, key = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4)
    core = torch.tensor([[2]])
    assert correctness.exact_mass(query, key, core, 2).flatten().tolist() == pytest.approx(
        [1 / 3] * 2
    )
    query[0, 0, 0, 0], key[0, 0, 2, 0] = 2.0, 1.0  # 2 / sqrt(4) = 1
    mass = correctness.exact_mass(query, key, core, 1).item()
    assert mass == pytest.approx(math.e / (math.e + 2))


def test_maps_that_are_off_are_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mend_of(correctness.check_maps, subject) == ""

    def off(*given):
        mixed, mass = plain_attention(*given)
        return mixed, None if mass is None else 1.05 * mass

    monkeypatch.setattr("star.method.attention.plain_attention", off)
    assert "more than 0.03" in mend_of(correctness.check_maps, subject)
    monkeypatch.setattr(correctness, "plain_attention", off)
    assert "its maps are off by 0.05" in mend_of(correctness.check_kernel, subject)


def test_an_adapter_that_stays_on_is_found(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mend_of(correctness.check_adapter, subject) == ""
    monkeypatch.setattr(SD3Policy, "reference", lambda self: nullcontext())
    assert "another model" in mend_of(correctness.check_adapter, subject)


def test_an_update_that_computes_otherwise_is_found(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = Roller.again

    def off(self, *given):
        transition = again(self, *given)
        return dataclasses.replace(transition, mean=transition.mean + 1e-3)

    monkeypatch.setattr(Roller, "again", off)
    assert "not 1 in bf16, fp16, no" in mend_of(correctness.check_ratios, subject)


def test_a_run_that_fails_leaves_the_others() -> None:
    class Run:
        def __init__(self, fails: bool) -> None:
            self.fails, self.epochs = fails, 0

        def train_epoch(self) -> SimpleNamespace:
            if self.fails:
                raise RuntimeError("no memory\nat all")
            self.epochs += 1
            seconds = {"rollout": float(self.epochs), "reward": 9.0, "update": 2.0 * self.epochs}
            return SimpleNamespace(seconds=seconds, first_ratio_error=0.0)

    good = Run(False)
    found = cost.interleave({"good": good, "bad": Run(True)}, 3, "test")  # type: ignore[dict-item]
    assert found["bad"] == {"failed": "no memory"}
    assert found["good"]["each"] == [6, 9, 12], "without the first epoch and the reward"
    assert found["good"]["seconds"] == {"rollout": 3, "update": 6, "both": 9}
    assert cost.ratio({"each": [2, 3, 8]}, {"each": [1, 1, 2]}) == 3


def test_hours_follow_from_rates_and_the_plan() -> None:
    """At one operation a second hours are operations; GenEval's images wait for the detector."""
    whole = load_params(Path("params.yaml"))
    params: Params = dataclasses.replace(
        whole, runs={"geneval": ["flow_grpo"], "ocr": [], "preference": []}
    )
    costs = Costs(forward=3, reference=2, training=9, decoding=1)
    rates = {"operations_per_s": {"rollout": 1.0, "update": 2.0}}
    speed = {**dict.fromkeys(ALGORITHMS, rates), "evaluation": {"operations_per_s": 4.0}}
    found = forecast(params, costs, {"speed": speed, "rewards": {"detector": 5.0}})
    method = params.with_method("flow_grpo")
    count = count_operations(method, costs)
    images = method.images_per_epoch * method.train.epochs
    training = count.rollout + count.update / 2 + images / 5
    assert found["images_per_s"] == pytest.approx(images / training)
    assert found["training_hours"] == pytest.approx((training + count.held_out / 4) / 3600)
    evaluation = count.evaluation / 4 / 3600
    assert found["evaluation_hours"] == pytest.approx(evaluation)
    assert found["hours"] == pytest.approx(found["training_hours"] + 2 * evaluation)
