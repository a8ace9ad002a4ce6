"""What `model.precision: auto` stands for, by what a device says of itself."""

import dataclasses
from pathlib import Path

import pytest
import torch

from star.config.params import load_params
from star.evaluation.score_folder import score_folder
from star.method.precision import resolve_precision, set_tf32
from star.policy.sd3 import load_policy

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_what_is_asked_for_stays(precision):
    assert resolve_precision(precision, CPU) == resolve_precision(precision, GPU) == precision


@pytest.mark.parametrize(
    ("found", "precision"),
    [
        ({"avx2": True}, "no"),
        ({"avx512_f": True, "avx512_bf16": False}, "no"),
        ({"avx512_f": True, "avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"bf16": True}, "no"),  # ARM
    ],
)
def test_a_processor_computes_in_bf16_where_it_has_instructions_for_it(
    monkeypatch, found, precision
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert resolve_precision("auto", CPU) == precision
    model = load_policy(load_params(Path("params.yaml")).model, CPU).model
    assert model.precision == precision


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_does_where_it_does_not_emulate_it(monkeypatch, supported):
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation: supported or including_emulation,
    )
    assert resolve_precision("auto", GPU) == ("bf16" if supported else "no")


def test_auto_draws_what_its_type_draws():
    """The policy of `auto` is the one of the type that it stands for, to the bit."""
    model = dataclasses.replace(load_params(Path("params.yaml")).model, precision="auto")
    auto = load_policy(model, CPU)
    named = load_policy(dataclasses.replace(model, precision=auto.model.precision), CPU)
    assert auto.model == named.model
    x, conditioning = auto.noise([1, 2]), auto.encode(["a red apple", "a sign"])
    assert torch.equal(
        auto.velocity(x, 500.0, conditioning), named.velocity(x, 500.0, conditioning)
    )


def test_tf32_is_that_of_products_and_of_convolutions(monkeypatch):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        set_tf32(not before[1])
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before, (
            "there is no GPU"
        )
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        for allowed, precision in ((True, "high"), (False, "highest")):
            set_tf32(allowed)
            assert torch.get_float32_matmul_precision() == precision
            assert torch.backends.cudnn.allow_tf32 == allowed
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("tf32", [True, False])
def test_the_parameter_decides_before_a_model_opens(monkeypatch, tmp_path, tf32):
    """In training and evaluation, which open the policy, and in the scoring of a folder."""
    said, params = [], load_params(Path("params.yaml"))
    model = dataclasses.replace(params.model, tf32=tf32)

    def stop(allowed):
        said.append(allowed)
        raise InterruptedError

    monkeypatch.setattr("star.policy.sd3.set_tf32", stop)
    monkeypatch.setattr("star.evaluation.score_folder.set_tf32", stop)
    with pytest.raises(InterruptedError):
        load_policy(model, CPU)
    with pytest.raises(InterruptedError):
        score_folder(
            dataclasses.replace(params, model=model), "geneval", [], tmp_path, tmp_path / "scores"
        )
    assert said == [tf32, tf32]
