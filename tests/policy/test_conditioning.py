"""Prompt embeddings: encoded once, kept on disk, read again without the encoders."""

import dataclasses

import pytest
import torch

from star.policy.conditioning import Conditioning, PromptStore
from star.policy.sd3 import encoder_key, load_policy
from star.system.errors import StarError
from tests.helpers.training import CPU, EXACT, PROMPTS, policy_of


class Encoder:
    """Embeds a prompt by its length, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts):
        self.asked.append(list(prompts))
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts], dtype=torch.bfloat16)
        embeds = lengths[:, None, None].expand(-1, 3, 2).clone()
        return Conditioning(embeds, lengths[:, None].clone())


def test_prompts_are_encoded_once_and_given_in_the_order_asked():
    encode = Encoder()
    store = PromptStore(encode, None, CPU, 2)
    found = store.get(["aaa", "b", "aaa"])
    assert found.pooled.flatten().tolist() == [3, 1, 3] and found.embeds.shape == (3, 3, 2)
    store.get(["b", "cc"])
    assert encode.asked == [["aaa", "b"], ["cc", ""]], "filled up to the encoders' batch"


def test_a_folder_serves_another_process_that_never_encodes(tmp_path):
    PromptStore(Encoder(), tmp_path / "made", CPU, 2).fill(["aaa", "b", "aaa", ""])
    encode = Encoder()
    store = PromptStore(encode, tmp_path / "made", CPU, 2)
    found = store.get(["b", "aaa"])
    assert found.pooled.flatten().tolist() == [1, 3] and found.pooled.dtype == torch.bfloat16
    store.fill(["aaa", "b"])
    assert encode.asked == [] and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("kept", [0, 7, 20, -13, -1])
def test_a_half_written_file_is_named(tmp_path, kept):
    PromptStore(Encoder(), tmp_path, CPU, 1).fill(["aaa"])
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(StarError, match=f"{file.name}: not a readable prompt embedding .* delete"):
        PromptStore(Encoder(), tmp_path, CPU, 1).get(["aaa"])


def test_the_policy_reads_from_the_cache_what_it_would_encode(tmp_path):
    plain = policy_of().encode(PROMPTS)
    policy_of(prompt_cache=str(tmp_path)).prepare_prompts(PROMPTS)
    policy = load_policy(dataclasses.replace(EXACT, prompt_cache=str(tmp_path)), CPU)
    for encoder in policy.encoders:
        encoder.forward = None  # may not be asked
    found = policy.encode(PROMPTS)
    assert torch.equal(found.pooled, plain.pooled) and torch.equal(found.embeds, plain.embeds)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3, "the empty prompt of the guidance too"


def test_encoders_leave_the_device_and_come_back_for_a_new_prompt(tmp_path):
    policy = load_policy(dataclasses.replace(EXACT, prompt_cache=str(tmp_path)), CPU)
    moves = []
    for encoder in policy.encoders:
        encoder.to = moves.append
        encoder.register_forward_pre_hook(lambda *_: moves.append("asked"))
    policy.prepare_prompts(["a photo of a red car"])
    assert moves == [CPU] * 3 + ["asked"] * 3 + ["cpu"] * 3
    moves.clear()
    policy.encode(["a photo of a red car"])
    assert moves == []
    policy.encode(["a photo of a green car"])
    assert moves == [CPU] * 3 + ["asked"] * 3


def test_what_a_prompt_becomes_does_not_depend_on_its_neighbours():
    things = ("car", "dog", "umbrella", "cup", "bus", "cat")
    prompts = [f"a photo of {count} {thing}s" for count in range(3) for thing in things]
    together, store = policy_of().encode(prompts), policy_of().prompts
    found = [store.get([prompt]) for prompt in reversed(prompts)][::-1]
    assert torch.equal(torch.cat([one.embeds for one in found]), together.embeds)
    assert torch.equal(torch.cat([one.pooled for one in found]), together.pooled)


def test_another_model_or_length_has_a_folder_of_its_own():
    changes = [{}, {"t5_tokens": 8}, {"precision": "bf16"}]
    changes += [{"path": "an/id", "revision": letter * 40} for letter in "ab"]
    keys = {encoder_key(dataclasses.replace(EXACT, **change), "cpu") for change in changes}
    assert len(keys | {encoder_key(EXACT, "cuda")}) == 6
