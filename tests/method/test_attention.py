"""Recorded attention against a naive float64 softmax, and the processor against the stock one."""

import math
import time

import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from star.method import attention
from star.method.attention import (
    LOG_SUM_EXP_KERNELS,
    AttentionRecorder,
    CoreKeys,
    choose_kernel,
    log_sum_exp_attention,
    one_hot_attention,
    plain_attention,
    record_core_attention,
    use_joint_processor,
)
from star.system.errors import StarError

CPU = torch.device("cpu")
FUSED = LOG_SUM_EXP_KERNELS["cpu"]["flash_cpu"]
KERNELS = {"plain": plain_attention, "flash_cpu": FUSED, "one_hot": one_hot_attention}
CORE = CoreKeys(
    torch.tensor([[1, 4, 0], [2, 6, 5]]), torch.tensor([[[1.0, 0.5, 0.0]], [[1.0, 1.0, 1.0]]])
)
every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def small_transformer(layers):
    torch.manual_seed(0)
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


@pytest.fixture
def transformer():
    """A dual-attention block, a plain one, and a last one, whose text output is dropped."""
    return small_transformer(3)


def inputs():
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(2, 7, 24, generator=generator),
        "pooled_projections": torch.randn(2, 20, generator=generator),
        "timestep": torch.full((2,), 500.0),
    }


def output_of(transformer):
    with torch.no_grad():
        return transformer(**inputs(), return_dict=False)[0]


def mass_of(transformer, blocks="all", arguments=None):
    with torch.no_grad(), record_core_attention(transformer, CORE, blocks) as recorder:
        transformer(**(arguments or inputs()), return_dict=False)
    return recorder.mass


def naive_softmax(query, key):
    scores = query.double() @ key.double().transpose(2, 3)
    return (scores / math.sqrt(query.shape[3])).softmax(-1)


@every_kernel
@pytest.mark.parametrize(("heads", "core_tokens"), [(1, 1), (3, 2), (5, 11)])
def test_mass_is_that_of_a_naive_float64_softmax(kernel, heads, core_tokens):
    """More core tokens than a head has features (8) take `one_hot` two passes."""
    generator = torch.Generator().manual_seed(2)
    query, key, value = torch.randn(3, 4, heads, 40, 8, generator=generator) * 2
    places = [26 + torch.randperm(14, generator=generator)[:core_tokens] for _ in range(2)]
    core = torch.stack(places)
    mixed, mass = KERNELS[kernel](query, key, value, core, 26)
    naive = naive_softmax(query, key)
    expected = torch.stack([naive[2 + b, :, :26].mean(0)[:, core[b]] for b in range(2)])
    assert mass.shape == (2, 26, core_tokens) and mass.dtype == torch.float32
    assert (mass - expected).abs().max() < 1e-5
    assert torch.allclose(mixed.double(), naive @ value.double(), atol=1e-5)
    unread = KERNELS[kernel](query, key, value, None, 26)
    assert torch.equal(unread[0], mixed) and unread[1] is None


@every_kernel
def test_gradients_are_those_of_the_naive_softmax(kernel):
    generator = torch.Generator().manual_seed(3)
    drawn = [(torch.randn(2, 2, 12, 8, generator=generator) * 2).requires_grad_() for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in drawn]
    KERNELS[kernel](*drawn, None, 8)[0].square().sum().backward()
    (naive_softmax(*exact[:2]) @ exact[2]).square().sum().backward()
    for ours, theirs in zip(drawn, exact, strict=True):
        assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-4)


@every_kernel
def test_the_processor_is_the_stock_one_and_recording_changes_nothing_and_is_undone(
    transformer, kernel
):
    stock = output_of(transformer)
    use_joint_processor(transformer, KERNELS[kernel])
    ours = output_of(transformer)
    assert torch.allclose(ours, stock, atol=1e-5)
    before = [block.attn.processor for block in transformer.transformer_blocks]
    with record_core_attention(transformer, CORE, "all") as recorder:
        assert torch.equal(output_of(transformer), ours)
    assert [block.attn.processor for block in transformer.transformer_blocks] == before
    assert recorder.mass.shape == (2, 16, 3)
    assert ((recorder.mass > 0) & (recorder.mass < 1)).all()


@pytest.mark.parametrize("block", [0, 1, 2], ids=["dual", "plain", "last"])
@pytest.mark.parametrize("guided", [False, True])
def test_every_kind_of_block_records_the_naive_mass(transformer, block, guided):
    """Mixed prompts; guided: of the second half, whose first half is unconditional."""
    arguments, probabilities = inputs(), []
    if guided:
        arguments = {name: torch.cat([value, value]) for name, value in arguments.items()}
        arguments["encoder_hidden_states"][:2] = 0

    def naive(query, key, value, core, image_tokens):
        if key.shape[2] == 16 + 7:  # not the image-only attn2
            probabilities.append(naive_softmax(query, key))
        return (naive_softmax(query, key) @ value.double()).to(value.dtype), None

    use_joint_processor(transformer, naive)
    with torch.no_grad():
        transformer(**arguments, return_dict=False)
    expected = probabilities[block][-2:, :, :16].mean(1)
    use_joint_processor(transformer, FUSED)
    found = mass_of(transformer, [block], arguments)
    for row in range(2):
        assert (found[row] - expected[row][:, 16 + CORE.index[row]]).abs().max() < 1e-5


def test_chosen_blocks_average_to_all(transformer):
    use_joint_processor(transformer, FUSED)
    each = torch.stack([mass_of(transformer, [b]) for b in range(3)])
    assert torch.allclose(mass_of(transformer), each.mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "relative"), [("plain", 0.02), ("flash_cpu", 0.0), ("one_hot", 0.0)]
)
def test_mass_under_autocast_is_the_softmax_of_the_rounded_queries_and_keys(
    transformer, kernel, relative
):
    """As exact as in float32, but for the plain products, whose probabilities are rounded."""
    compared = []

    def both(query, key, value, core, image_tokens):
        mixed, mass = KERNELS[kernel](query, key, value, core, image_tokens)
        if core is not None:
            assert query.dtype == key.dtype == torch.bfloat16 and mass.dtype == torch.float32
            naive = naive_softmax(query, key)[:, :, :image_tokens].mean(1)
            compared.append((mass.double(), naive.gather(2, core[:, None].expand(-1, 16, -1))))
        return mixed, mass

    use_joint_processor(transformer, KERNELS[kernel])
    exact = mass_of(transformer)
    use_joint_processor(transformer, both)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = mass_of(transformer)
    assert len(compared) == 3 and torch.allclose(rounded, exact, rtol=0.1, atol=1e-3)
    assert all(torch.allclose(*pair, rtol=relative, atol=1e-5) for pair in compared)


@pytest.mark.slow
def test_recording_works_compiled_by_graphs_that_all_blocks_share():
    """24 blocks, as SD3.5-M: what differs between them would be compiled until the limit is met.

    Without a C++ compiler: the graphs are captured and run, only no code is generated.
    """
    torch.compiler.reset()  # what other tests compiled counts towards the limit
    transformer = small_transformer(24)
    use_joint_processor(transformer, FUSED)
    expected = mass_of(transformer)
    for block in transformer.transformer_blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=False, fail_on_recompile_limit_hit=True):
        output_of(transformer)  # as it is outside of the recording
        found = mass_of(transformer)
    torch.compiler.reset()
    assert torch.allclose(found, expected, atol=1e-5)


def test_recording_works_with_checkpointing_and_adapters(transformer):
    """Gradient checkpointing changes neither the maps nor the gradients of a LoRA adapter."""
    use_joint_processor(transformer, FUSED)
    targets = ["attn.to_q", "attn.add_k_proj"]
    transformer.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=targets))

    def mass_and_gradients():
        mass = mass_of(transformer)
        transformer.zero_grad()
        transformer(**inputs(), return_dict=False)[0].square().sum().backward()
        return mass, [p.grad.clone() for p in transformer.parameters() if p.grad is not None]

    mass, gradients = mass_and_gradients()
    transformer.enable_gradient_checkpointing()
    transformer.train()
    same_mass, same_gradients = mass_and_gradients()
    assert torch.equal(mass, same_mass) and gradients
    for one, other in zip(gradients, same_gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("kernel", ["flash_cpu", "one_hot"])
def test_no_tensor_of_all_scores_is_built_beside_the_fused_kernel(kernel):
    """The largest one for 1,000 image tokens is far below 1,000 x 1,000."""
    query, key, value = torch.randn(3, 1, 2, 1100, 8)

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            result = function(*arguments, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return result

    with Largest() as largest:
        KERNELS[kernel](query, key, value, torch.tensor([[1050, 1060]]), 1000)
    assert 0 < largest.elements <= 3 * query.numel()


def test_the_kernel_is_chosen_by_length_and_by_what_works(monkeypatch):
    assert choose_kernel(CPU, torch.bfloat16, 157, 4, 32)[0] == "plain"
    for dtype in (torch.float32, torch.bfloat16):
        assert choose_kernel(CPU, dtype, 1229, 24, 64)[0] == "flash_cpu"

    def wrong(*arguments):
        mixed, mass = FUSED(*arguments)
        return mixed, mass * 1.001

    def missing(*arguments):
        raise NotImplementedError("no such kernel on this device")

    for broken in (wrong, missing):
        monkeypatch.setitem(LOG_SUM_EXP_KERNELS, "cpu", {"broken": broken})
        assert choose_kernel(CPU, torch.float32, 1229, 24, 64)[0] == "one_hot"


def test_the_fastest_of_the_kernels_that_are_right_is_taken(monkeypatch):
    """On the real size: what works on the probe's few tokens alone is not."""

    def slow(*arguments):
        time.sleep(0.02)
        return FUSED(*arguments)

    def wrong(*arguments):
        return arguments[0], torch.zeros(1)

    def short(query, *others):
        if query.shape[1:3] != (2, 48):
            raise RuntimeError("No execution plans support the graph.")
        return FUSED(query, *others)

    given = {"slow": slow, "wrong": wrong, "short": short, "fast": FUSED, "again": FUSED}
    monkeypatch.setitem(LOG_SUM_EXP_KERNELS, "cpu", given)
    assert choose_kernel(CPU, torch.float32, 600, 1, 8)[0] in ("fast", "again")


def test_how_a_gpus_kernels_lay_out_their_log_sum_exp():
    """On tensors without values: a value of each query, with a padding or a last dimension."""
    sizes = {}
    with FakeTensorMode():
        query, key, value = torch.empty(3, 4, 24, 1229, 64, device="cuda", dtype=torch.bfloat16)
        for name, attend in attention.FUSED["cuda"].items():
            mixed, log_sum_exp = attend(query, key, value)[:2]
            assert mixed.shape == query.shape and mixed.dtype == torch.bfloat16, name
            assert log_sum_exp.dtype == torch.float32, name
            sizes[name] = tuple(log_sum_exp.shape)
    few = 4, 24, 1229
    assert sizes == {"flash": few, "efficient": (4, 24, 1248), "cudnn": (*few, 1)}


@pytest.mark.parametrize("layout", ["padded", "trailing"])
def test_the_mass_does_not_depend_on_how_the_log_sum_exp_lies(layout):
    def attend(query, key, value):
        mixed, log_sum_exp = attention.FUSED["cpu"]["flash_cpu"](query, key, value)[:2]
        padded = torch.nn.functional.pad(log_sum_exp, (0, 24))
        return mixed, padded if layout == "padded" else log_sum_exp[..., None]

    drawn = torch.randn(3, 2, 3, 40, 8)
    core = torch.tensor([[30, 33]])
    given = *drawn, core, 26
    found, expected = log_sum_exp_attention(attend)(*given)[1], FUSED(*given)[1]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_tf32_is_no_fault_of_a_kernel(monkeypatch, precision):
    """Emulated: 13 bits of the queries are cut off unless torch is told not to."""

    def rounding(query, *others):
        if torch.get_float32_matmul_precision() != "highest":
            query = (query.view(torch.int32) & ~0x1FFF).view(torch.float32)
        return FUSED(query, *others)

    monkeypatch.setitem(LOG_SUM_EXP_KERNELS, "cpu", {"rounding": rounding})
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert choose_kernel(CPU, torch.float32, 1229, 24, 64)[0] == "rounding"
        assert torch.get_float32_matmul_precision() == precision, "it is the user's choice"
    finally:
        torch.set_float32_matmul_precision(before)


def test_errors(transformer):
    use_joint_processor(transformer, plain_attention)
    with pytest.raises(StarError, match="allocation.blocks: no block 3"):
        mass_of(transformer, [3])
    with pytest.raises(RuntimeError, match="no block was recorded"):
        _ = AttentionRecorder(CORE.index, 1).mass


def test_core_keys_pad_with_weight_zero_and_keep_clauses_apart():
    weights = torch.zeros(2, 2, 4)
    weights[0, 0, 1], weights[0, 1, 3], weights[1, 0, 2] = 1.0, 0.5, 2.0
    keys = CoreKeys.from_weights(weights)
    assert keys.index[0].tolist() == [1, 3] and keys.weight[0].tolist() == [[1.0, 0.0], [0.0, 0.5]]
    assert keys.index[1, 0] == 2 and keys.weight[1].tolist() == [[2.0, 0.0], [0.0, 0.0]]
    told = CoreKeys.from_weights(weights, 2)
    assert torch.equal(told.index, keys.index) and torch.equal(told.weight, keys.weight)
