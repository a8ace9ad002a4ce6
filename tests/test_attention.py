"""Recorded attention against a naive float64 softmax, and the processor against the stock one."""

import math

import pytest
import torch
from diffusers import SD3Transformer2DModel

from star.attention import AttentionRecorder, CoreKeys, core_mass, record_core_attention, use_joint_processor
from star.errors import StarError


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
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


CORE = CoreKeys(torch.tensor([[1, 4, 0], [2, 6, 5]]), torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]]))


def test_core_mass_equals_a_naive_softmax():
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(2, 3, 5, 8, generator=generator, dtype=torch.float64) * 3
    key = torch.randn(2, 3, 9, 8, generator=generator, dtype=torch.float64) * 3
    index = torch.tensor([[5, 8], [6, 7]])
    naive = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(8), dim=3).mean(1)  # (batch, queries, keys)
    expected = torch.stack([naive[b][:, index[b]] for b in range(2)])
    assert torch.allclose(core_mass(query, key, index).double(), expected, atol=1e-5)


def test_processor_gives_what_the_stock_one_gives(transformer):
    with torch.no_grad():
        stock = transformer(**inputs(), return_dict=False)[0]
        use_joint_processor(transformer)
        ours = transformer(**inputs(), return_dict=False)[0]
    assert torch.allclose(ours, stock, atol=1e-5)


def test_recording_leaves_the_output_alone_and_is_undone(transformer):
    use_joint_processor(transformer)
    with torch.no_grad():
        plain = transformer(**inputs(), return_dict=False)[0]
        before = [block.attn.processor for block in transformer.transformer_blocks]
        with record_core_attention(transformer, CORE, "all") as recorder:
            recorded = transformer(**inputs(), return_dict=False)[0]
    assert torch.equal(plain, recorded)
    assert [block.attn.processor for block in transformer.transformer_blocks] == before
    assert recorder.mass.shape == (2, 16, 3)
    assert ((recorder.mass > 0) & (recorder.mass < 1)).all()


def test_only_the_conditional_half_is_read(transformer):
    use_joint_processor(transformer)
    both = {name: torch.cat([value, value]) for name, value in inputs().items()}
    both["encoder_hidden_states"][:2] = 0  # the unconditional half
    with torch.no_grad():
        with record_core_attention(transformer, CORE, [1]) as alone:
            transformer(**inputs(), return_dict=False)
        with record_core_attention(transformer, CORE, [1]) as guided:
            transformer(**both, return_dict=False)
    assert torch.allclose(alone.mass, guided.mass, atol=1e-6)


def test_chosen_blocks_average_to_all(transformer):
    use_joint_processor(transformer)

    def mass(blocks):
        with torch.no_grad(), record_core_attention(transformer, CORE, blocks) as recorder:
            transformer(**inputs(), return_dict=False)
        return recorder.mass

    assert torch.allclose(mass("all"), torch.stack([mass([b]) for b in range(3)]).mean(0), atol=1e-6)


def test_errors(transformer):
    with pytest.raises(StarError, match="allocation.blocks: no block 3"), record_core_attention(transformer, CORE, [3]):
        pass
    with pytest.raises(RuntimeError, match="no block was recorded"):
        _ = AttentionRecorder(CORE).mass


def test_core_keys_pad_with_weight_zero():
    keys = CoreKeys.from_weights(torch.tensor([[0.0, 1.0, 0.0, 0.5], [0.0, 0.0, 2.0, 0.0]]))
    assert keys.index[0].tolist() == [1, 3] and keys.weight[0].tolist() == [1.0, 0.5]
    assert keys.index[1, 0] == 2 and keys.weight[1].tolist() == [2.0, 0.0]
