"""What `model.precision: auto` stands for, by what a device says of itself; and TF32."""

import pytest
import torch

from star.method.precision import resolve_precision, set_tf32

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


@pytest.mark.parametrize(("supported", "precision"), [(True, "bf16"), (False, "no")])
def test_a_gpu_does_where_it_does_not_emulate_it(monkeypatch, supported, precision):
    def is_supported(including_emulation):
        return supported or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert resolve_precision("auto", GPU) == precision


def test_tf32_is_that_of_products_and_of_convolutions_of_a_gpu(monkeypatch):
    def found():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = found()
    try:
        set_tf32(not before[1])
        assert found() == before, "there is no GPU"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        for allowed, precision in ((True, "high"), (False, "highest")):
            set_tf32(allowed)
            assert found() == (precision, allowed)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
