"""Recorded attention against a naive float64 softmax, and the processor against the stock one."""

import math

import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode

from star.method.attention import (
    LOG_SUM_EXP_KERNELS,
    AttentionRecorder,
    CoreKeys,
    choose_kernel,
    one_hot_attention,
    plain_attention,
    record_core_attention,
    use_joint_processor,
)
from star.system.errors import StarError

FUSED = LOG_SUM_EXP_KERNELS["cpu"]["flash_cpu"]
KERNELS = {"plain": plain_attention, "flash_cpu": FUSED, "one_hot": one_hot_attention}


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return small_transformer(3)


def small_transformer(layers):
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=20,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ).eval()


def inputs(batch=2):
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 7, 24, generator=generator),
        "pooled_projections": torch.randn(batch, 20, generator=generator),
        "timestep": torch.full((batch,), 500.0),
    }


CORE = CoreKeys(
    torch.tensor([[1, 4, 0], [2, 6, 5]]), torch.tensor([[[1.0, 0.5, 0.0]], [[1.0, 1.0, 1.0]]])
)


class Naive:
    """A stock-like processor that keeps the float64 softmax of what it is given; image keys
    first."""

    def __init__(self):
        self.probabilities = []

    def kernel(self, query, key, value, core, image_tokens):
        scores = query.double() @ key.double().transpose(2, 3) / math.sqrt(query.shape[3])
        self.probabilities.append(scores.softmax(-1))
        return (self.probabilities[-1] @ value.double()).to(value.dtype), None


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("heads", "core_tokens"), [(1, 1), (3, 2), (5, 11)])
def test_mass_is_that_of_a_naive_float64_softmax(kernel, heads, core_tokens):
    """Any number of heads; more core tokens than a head has features (8), which `one_hot` takes in
    two passes."""
    generator = torch.Generator().manual_seed(2)
    query, key, value = torch.randn(3, 4, heads, 40, 8, generator=generator) * 2
    core = torch.stack(
        [26 + torch.randperm(14, generator=generator)[:core_tokens] for _ in range(2)]
    )
    mixed, mass = KERNELS[kernel](query, key, value, core, 26)
    naive = torch.softmax(query.double() @ key.double().transpose(2, 3) / math.sqrt(8), dim=3)
    expected = torch.stack([naive[2 + b, :, :26].mean(0)[:, core[b]] for b in range(2)])
    assert mass.shape == (2, 26, core_tokens) and mass.dtype == torch.float32
    assert (mass - expected).abs().max() < 1e-5
    assert torch.allclose(mixed.double(), naive @ value.double(), atol=1e-5)
    assert torch.equal(KERNELS[kernel](query, key, value, None, 26)[0], mixed), (
        "the output does not depend on reading"
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_are_those_of_the_naive_softmax(kernel):
    generator = torch.Generator().manual_seed(3)
    drawn = [(torch.randn(2, 2, 12, 8, generator=generator) * 2).requires_grad_() for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in drawn]
    KERNELS[kernel](*drawn, None, 8)[0].square().sum().backward()
    scores = exact[0] @ exact[1].transpose(2, 3) / math.sqrt(8)
    (scores.softmax(-1) @ exact[2]).square().sum().backward()
    for ours, theirs in zip(drawn, exact, strict=True):
        assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_processor_gives_what_the_stock_one_gives(transformer, kernel):
    with torch.no_grad():
        stock = transformer(**inputs(), return_dict=False)[0]
        use_joint_processor(transformer, KERNELS[kernel])
        ours = transformer(**inputs(), return_dict=False)[0]
    assert torch.allclose(ours, stock, atol=1e-5)


def mass_of(transformer, blocks, arguments=None):
    with torch.no_grad(), record_core_attention(transformer, CORE, blocks) as recorder:
        transformer(**(arguments or inputs()), return_dict=False)
    return recorder.mass


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("block", [0, 1, 2], ids=["dual", "plain", "last"])
@pytest.mark.parametrize("guided", [False, True])
def test_every_kind_of_block_records_the_naive_mass(transformer, kernel, block, guided):
    """Dual-attention, plain and last block (text output dropped), mixed prompts; guided: the second
    half alone."""
    arguments = inputs()
    if guided:
        arguments = {name: torch.cat([value, value]) for name, value in arguments.items()}
        arguments["encoder_hidden_states"][:2] = 0  # the unconditional half
    naive = Naive()
    use_joint_processor(transformer, naive.kernel)
    with torch.no_grad():
        transformer(**arguments, return_dict=False)
    joint = [p for p in naive.probabilities if p.shape[-1] == 16 + 7]  # not the image-only attn2
    expected = joint[block][-2:, :, :16].mean(1)
    use_joint_processor(transformer, KERNELS[kernel])
    found = mass_of(transformer, [block], arguments)
    for row in range(2):
        assert (found[row] - expected[row][:, 16 + CORE.index[row]]).abs().max() < 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
def test_recording_leaves_the_output_alone_and_is_undone(transformer, kernel):
    use_joint_processor(transformer, KERNELS[kernel])
    with torch.no_grad():
        plain = transformer(**inputs(), return_dict=False)[0]
        before = [block.attn.processor for block in transformer.transformer_blocks]
        with record_core_attention(transformer, CORE, "all") as recorder:
            recorded = transformer(**inputs(), return_dict=False)[0]
    assert torch.equal(plain, recorded)
    assert [block.attn.processor for block in transformer.transformer_blocks] == before
    assert recorder.mass.shape == (2, 16, 3)
    assert ((recorder.mass > 0) & (recorder.mass < 1)).all()


def test_chosen_blocks_average_to_all(transformer):
    use_joint_processor(transformer, FUSED)
    each = torch.stack([mass_of(transformer, [b]) for b in range(3)])
    assert torch.allclose(mass_of(transformer, "all"), each.mean(0), atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_recording_works_under_autocast(transformer, kernel):
    use_joint_processor(transformer, KERNELS[kernel])
    exact = mass_of(transformer, "all")
    with torch.autocast("cpu", torch.bfloat16):
        rounded = mass_of(transformer, "all")
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, rtol=0.1, atol=1e-3)


@pytest.mark.parametrize(
    ("kernel", "relative"), [("plain", 0.02), ("flash_cpu", 0.0), ("one_hot", 0.0)]
)
def test_mass_under_autocast_is_the_softmax_of_the_rounded_queries_and_keys(
    transformer, kernel, relative
):
    """As exactly as in float32, but for the probabilities of the plain products, which are rounded
    themselves."""
    naive, masses = Naive(), []

    def both(query, key, value, core, image_tokens):
        mixed, mass = KERNELS[kernel](query, key, value, core, image_tokens)
        if core is not None:
            assert query.dtype == key.dtype == torch.bfloat16
            naive.kernel(query, key, value, core, image_tokens)
            masses.append((mass, naive.probabilities[-1][:, :, :image_tokens].mean(1), core))
        return mixed, mass

    use_joint_processor(transformer, both)
    with torch.autocast("cpu", torch.bfloat16):
        mass_of(transformer, "all")
    assert len(masses) == 3
    for mass, probability, core in masses:
        expected = probability.gather(2, core[:, None].expand(-1, 16, -1))
        assert torch.allclose(mass.double(), expected, rtol=relative, atol=1e-5)


@pytest.mark.parametrize("kernel", ["plain", "flash_cpu"])
def test_recording_works_compiled(transformer, kernel):
    """Without a C++ compiler: the graphs are captured and run, only no code is generated."""
    use_joint_processor(transformer, KERNELS[kernel])
    plain = mass_of(transformer, "all")
    for block in transformer.transformer_blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        transformer(**inputs(), return_dict=False)  # as it is outside of the recording
    assert torch.allclose(mass_of(transformer, "all"), plain, atol=1e-6)
    torch.compiler.reset()


def test_all_blocks_share_the_graphs_that_record_them():
    """As many as SD3.5-M has: what differs from block to block would be compiled until the limit is
    reached."""
    transformer = small_transformer(24).eval()
    use_joint_processor(transformer, FUSED)
    expected = mass_of(transformer, "all")
    for block in transformer.transformer_blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=False, fail_on_recompile_limit_hit=True):
        found = mass_of(transformer, "all")
    torch.compiler.reset()
    assert torch.allclose(found, expected, atol=1e-5)


def test_recording_works_with_checkpointing_and_adapters(transformer):
    """The maps of a model with a LoRA adapter and gradient checkpointing are those without
    checkpointing, and so are the gradients."""
    use_joint_processor(transformer, FUSED)
    transformer.add_adapter(
        LoraConfig(r=2, init_lora_weights=False, target_modules=["attn.to_q", "attn.add_k_proj"])
    )

    def state():
        mass = mass_of(transformer, "all")
        transformer.zero_grad()
        transformer(**inputs(), return_dict=False)[0].square().sum().backward()
        return mass, [p.grad.clone() for p in transformer.parameters() if p.grad is not None]

    without = state()
    transformer.enable_gradient_checkpointing()
    transformer.train()
    checkpointed = state()
    assert torch.equal(without[0], checkpointed[0])
    assert without[1] and all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(without[1], checkpointed[1], strict=True)
    )


def test_no_tensor_of_all_scores_is_built_beside_the_fused_kernel(transformer):
    """The largest tensor that the recording of 1,000 image tokens makes is far below 1,000 x
    1,000."""
    query, key, value = torch.randn(3, 1, 2, 1100, 8)

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            result = function(*arguments, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return result

    for kernel in (FUSED, one_hot_attention):
        with Largest() as largest:
            kernel(query, key, value, torch.tensor([[1050, 1060]]), 1000)
        assert 0 < largest.elements <= 3 * query.numel()


def test_the_kernel_is_chosen_by_length_and_by_what_works(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_kernel(cpu, torch.bfloat16, 157, 32)[0] == "plain"
    for dtype in (torch.float32, torch.bfloat16):
        assert choose_kernel(cpu, dtype, 1229, 64)[0] == "flash_cpu"

    def wrong(query, key, value, core, image_tokens):
        mixed, mass = FUSED(query, key, value, core, image_tokens)
        return mixed, mass * 1.001

    def missing(query, key, value, core, image_tokens):
        raise NotImplementedError("no such kernel on this device")

    for broken in (wrong, missing):
        monkeypatch.setitem(LOG_SUM_EXP_KERNELS, "cpu", {"broken": broken})
        assert choose_kernel(cpu, torch.float32, 1229, 64)[0] == "one_hot"


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_tf32_is_no_fault_of_a_kernel(monkeypatch, precision):
    """Emulated: 13 bits of the products' float32 factors are cut off unless torch is told not
    to."""

    def rounding(query, key, value, core, image_tokens):
        if torch.get_float32_matmul_precision() != "highest":
            query = (query.view(torch.int32) & ~0x1FFF).view(torch.float32)
        return FUSED(query, key, value, core, image_tokens)

    monkeypatch.setitem(LOG_SUM_EXP_KERNELS, "cpu", {"rounding": rounding})
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert choose_kernel(torch.device("cpu"), torch.float32, 1229, 64)[0] == "rounding"
        assert torch.get_float32_matmul_precision() == precision, "it is the user's choice"
    finally:
        torch.set_float32_matmul_precision(before)


def test_errors(transformer):
    use_joint_processor(transformer, plain_attention)
    with (
        pytest.raises(StarError, match="allocation.blocks: no block 3"),
        record_core_attention(transformer, CORE, [3]),
    ):
        pass
    with pytest.raises(RuntimeError, match="no block was recorded"):
        _ = AttentionRecorder(CORE.index, 1).mass


def test_core_keys_pad_with_weight_zero_and_keep_clauses_apart():
    weights = torch.tensor(
        [[[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5]], [[0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]
    )
    keys = CoreKeys.from_weights(weights)
    assert keys.index[0].tolist() == [1, 3] and keys.weight[0].tolist() == [[1.0, 0.0], [0.0, 0.5]]
    assert keys.index[1, 0] == 2 and keys.weight[1].tolist() == [[2.0, 0.0], [0.0, 0.0]]
