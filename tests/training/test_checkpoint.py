"""States on disk: whole or refused, the newest few, of one training alone."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from star.system.errors import StarError
from star.system.locks import take_lock
from star.training.checkpoint import (
    States,
    load_state,
    optimizer_tensors,
    read_facts,
    remove_done,
    restore_optimizer,
    save_state,
)

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
}


def test_a_state_comes_back(tmp_path):
    save_state(tmp_path / "deep" / "state", TENSORS, {"epoch": 3})
    tensors, facts = load_state(tmp_path / "deep" / "state")
    assert facts == {"epoch": 3} == read_facts(tmp_path / "deep" / "state")
    assert all(
        torch.equal(tensors[name], TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype
        for name in TENSORS
    )
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["state"]


def damaged(path, how):
    content = bytearray(path.read_bytes())
    if how == "empty":
        content = bytearray()
    elif how == "truncated":
        content = content[: len(content) // 2]
    elif how == "a bit flipped":
        content[-3] ^= 1
    elif how == "other facts":
        content = content.replace(b'epoch\\": 3', b'epoch\\": 4')
    elif how == "a pickle":
        torch.save({"a": 1}, path)
        return
    assert bytes(content) != path.read_bytes()
    path.write_bytes(bytes(content))


DAMAGES = ["empty", "truncated", "a bit flipped", "other facts", "a pickle"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_state_is_named(tmp_path, how):
    path = tmp_path / "state.safetensors"
    save_state(path, TENSORS, {"epoch": 3})
    damaged(path, how)
    with pytest.raises(
        StarError, match=r"state.safetensors: not a readable training state \(.+\); delete it"
    ):
        load_state(path)


def test_a_tensor_file_of_something_else_is_no_state(tmp_path):
    save_file(TENSORS, tmp_path / "weights.safetensors")
    with pytest.raises(StarError, match="not a readable training state"):
        load_state(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("how", DAMAGES)
def test_the_state_before_a_damaged_one_is_used_and_the_log_says_so(tmp_path, how, capsys):
    states = States(tmp_path, keep=2, identity={"seed": 1})
    for epoch in (5, 3, 4):
        states.save(epoch, TENSORS | {"epoch": torch.tensor([epoch])}, {"epoch": epoch})
    assert [file.name for file in states.files()] == [
        "state-000004.safetensors",
        "state-000005.safetensors",
    ]
    damaged(states.files()[-1], how if how != "other facts" else "truncated")
    tensors, facts = states.newest()
    assert facts["epoch"] == 4 == int(tensors["epoch"])
    printed = "".join(capsys.readouterr())
    assert (
        "state-000005.safetensors: not a readable" in printed
        and "trying the state before it" in printed
    )


def test_states_are_in_the_order_of_their_epochs(tmp_path):
    """Also beyond six digits, where the order of their names is another."""
    states = States(tmp_path, 2, {})
    for epoch in (999_990, 999_995, 1_000_000):
        states.save(epoch, {"a": torch.ones(1)}, {"epoch": epoch})
    assert [int(file.stem.split("-")[1]) for file in states.files()] == [999_995, 1_000_000]
    found = states.newest()
    assert found is not None and found[1]["epoch"] == 1_000_000


def test_what_trainings_of_a_name_left_that_are_done_is_deleted_and_nothing_else(tmp_path):
    done = ["ocr-star-0", "ocr-star-1", "ocr-star-2", "ocr-star_clip-0", "geneval-star-0"]
    for name in (*done, "ocr-star-3"):
        for epoch in (1, 2):
            States(tmp_path / name, 2, {}).save(epoch, TENSORS, {"epoch": epoch})
    for name in done:
        States(tmp_path / name, 2, {}).finish()
        assert [file.name for file in (tmp_path / name).glob("*.safetensors")] == [
            "state-000002.safetensors"
        ]
    lock = take_lock(tmp_path / "ocr-star-1" / ".lock", "started again")
    remove_done(tmp_path / "ocr-star-2")
    lock.release()
    left = {folder.name for folder in tmp_path.iterdir()}
    assert left == {"ocr-star-1", "ocr-star-2", "ocr-star-3", "ocr-star_clip-0", "geneval-star-0"}
    assert States(tmp_path / "ocr-star-2", 2, {}).newest()[1] == {"epoch": 2}


def test_nothing_is_started_over_because_all_states_are_damaged(tmp_path):
    states = States(tmp_path, 2, {})
    assert states.newest() is None
    for epoch in (1, 2):
        states.save(epoch, TENSORS, {"epoch": epoch})
        damaged(states.files()[-1], "truncated")
    with pytest.raises(
        StarError, match="none of its 2 states can be read; delete it to start over"
    ):
        states.newest()


def test_a_state_of_other_parameters_is_refused_with_the_keys(tmp_path):
    identity = {"seed": 1, "train": {"learning_rate": 1e-3, "epochs": 2}, "methods": ["a"]}
    States(tmp_path, 2, identity).save(1, TENSORS, {"epoch": 1})
    assert States(tmp_path, 2, json.loads(json.dumps(identity))).newest()[1] == {"epoch": 1}
    changed = {"seed": 1, "train": {"learning_rate": 2e-3, "epochs": 2}, "methods": ["a", "b"]}
    with pytest.raises(
        StarError,
        match=r"methods \['a'\] -> \['a', 'b'\], train.learning_rate 0.001 -> 0.002; set them",
    ):
        States(tmp_path, 2, changed).newest()


def test_a_write_that_fails_leaves_the_earlier_state(tmp_path, monkeypatch):
    states = States(tmp_path, 2, {})
    states.save(1, TENSORS, {"epoch": 1})
    written = load_file(states.files()[0])

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("star.training.checkpoint.save_file", full)
    with pytest.raises(StarError, match="state-000002.safetensors: No space left"):
        states.save(2, TENSORS, {"epoch": 2})
    assert states.newest()[1] == {"epoch": 1}
    assert all(torch.equal(written[name], load_file(states.files()[0])[name]) for name in TENSORS)


def test_an_optimizer_goes_on_as_if_it_had_not_stopped():
    def run(steps, state=None):
        torch.manual_seed(0)
        weights = (
            torch.nn.Parameter(torch.ones(4))
            if state is None
            else torch.nn.Parameter(state[0].clone())
        )
        optimizer = torch.optim.AdamW([weights], lr=0.1)
        if state is not None:
            restore_optimizer(optimizer, state[1], "optimizer.")
        for _ in range(steps):
            weights.grad = weights.detach() * 2
            optimizer.step()
        return weights.detach(), optimizer_tensors(optimizer, "optimizer.")

    assert torch.equal(run(5)[0], run(3, run(2))[0])
    assert not torch.equal(run(5)[0], run(3, (run(2)[0], {}))[0]), "the moments matter"
