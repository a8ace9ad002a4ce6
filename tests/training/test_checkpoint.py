"""States on disk: whole or refused, the newest few, of one training alone."""

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
UNREADABLE = r"state.*: not a readable training state \(.+\); delete it"


def save(states, *epochs):
    for epoch in epochs:
        states.save(epoch, TENSORS | {"epoch": torch.tensor([epoch])}, {"epoch": epoch})


def names(folder):
    return sorted(file.name for file in folder.glob("*.safetensors"))


def test_a_state_comes_back(tmp_path):
    path = tmp_path / "deep" / "state"
    save_state(path, TENSORS, {"epoch": 3})
    tensors, facts = load_state(path)
    assert facts == {"epoch": 3} == read_facts(path)
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype
    assert [file.name for file in path.parent.iterdir()] == ["state"]


def flip_a_bit(content):
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "a bit flipped": flip_a_bit,
    "other facts": lambda content: content.replace(b'epoch\\": 3', b'epoch\\": 4'),
}


@pytest.mark.parametrize("how", [*DAMAGES, "a pickle", "other tensors"])
def test_a_damaged_state_is_named(tmp_path, how):
    path = tmp_path / "state.safetensors"
    save_state(path, TENSORS, {"epoch": 3})
    whole = path.read_bytes()
    if how == "a pickle":
        torch.save({"a": 1}, path)
    elif how == "other tensors":
        save_file(TENSORS, path)
    else:
        path.write_bytes(DAMAGES[how](whole))
    assert path.read_bytes() != whole
    with pytest.raises(StarError, match=UNREADABLE):
        load_state(path)


def test_the_state_before_a_damaged_one_is_used_and_the_log_says_so(tmp_path, capsys):
    states = States(tmp_path, keep=2, identity={"seed": 1})
    save(states, 5, 3, 4)
    assert names(tmp_path) == ["state-000004.safetensors", "state-000005.safetensors"]
    states.files()[-1].write_bytes(b"")
    tensors, facts = states.newest()
    assert facts["epoch"] == 4 == int(tensors["epoch"])
    printed = "".join(capsys.readouterr())
    assert "state-000005.safetensors: not a readable" in printed and "state before it" in printed


def test_states_are_in_the_order_of_their_epochs(tmp_path):
    """Also beyond six digits, where the order of their names is another."""
    states = States(tmp_path, 2, {})
    save(states, 999_990, 999_995, 1_000_000)
    assert [int(file.stem.split("-")[1]) for file in states.files()] == [999_995, 1_000_000]
    assert states.newest()[1]["epoch"] == 1_000_000


def test_what_trainings_of_a_name_left_that_are_done_is_deleted_and_nothing_else(tmp_path):
    done = ["ocr-star-0", "ocr-star-1", "ocr-star-2", "ocr-star_clip-0", "geneval-star-0"]
    for name in (*done, "ocr-star-3"):
        save(States(tmp_path / name, 2, {}), 1, 2)
    for name in done:
        States(tmp_path / name, 2, {}).finish()
        assert names(tmp_path / name) == ["state-000002.safetensors"]
    lock = take_lock(tmp_path / "ocr-star-1" / ".lock", "started again")
    remove_done(tmp_path / "ocr-star-2")
    lock.release()
    left = {folder.name for folder in tmp_path.iterdir()}
    assert left == {*done, "ocr-star-3"} - {"ocr-star-0"}
    assert States(tmp_path / "ocr-star-2", 2, {}).newest()[1] == {"epoch": 2}


def test_nothing_is_started_over_because_all_states_are_damaged(tmp_path):
    states = States(tmp_path, 2, {})
    assert states.newest() is None
    save(states, 1, 2)
    for file in states.files():
        file.write_bytes(b"")
    with pytest.raises(StarError, match="none of its 2 states can be read; delete"):
        states.newest()


def test_a_write_that_fails_leaves_the_earlier_state(tmp_path, monkeypatch):
    states = States(tmp_path, 2, {})
    save(states, 1)
    written = load_file(states.files()[0])

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("star.training.checkpoint.save_file", full)
    with pytest.raises(StarError, match="state-000002.safetensors: No space left"):
        save(states, 2)
    tensors, facts = states.newest()
    assert facts == {"epoch": 1}
    assert all(torch.equal(written[name], tensors[name]) for name in TENSORS)


def test_an_optimizer_goes_on_as_if_it_had_not_stopped():
    def run(steps, start=None, moments=None):
        weights = torch.nn.Parameter(torch.ones(4) if start is None else start.clone())
        optimizer = torch.optim.AdamW([weights], lr=0.1)
        if moments is not None:
            restore_optimizer(optimizer, moments, "optimizer.")
        for _ in range(steps):
            weights.grad = weights.detach() * 2
            optimizer.step()
        return weights.detach(), optimizer_tensors(optimizer, "optimizer.")

    assert torch.equal(run(5)[0], run(3, *run(2))[0])
    assert not torch.equal(run(5)[0], run(3, run(2)[0])[0]), "the moments matter"
