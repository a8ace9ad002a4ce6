"""Models by hub id, from a hub on the loopback: refused with a mend, or opened, pinned, again."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from star.cli import main
from star.config.params import PreferenceParams
from star.config.reading import load_params
from star.policy.rollout import sample_images
from star.policy.sd3 import encoder_key, load_policy
from star.rewards.factory import build_detector, find_models
from star.rewards.preference import PreferenceReward
from star.system.errors import StarError
from star.system.hub import DESCRIPTIONS, model_folder
from tests.helpers.fake_hub import COMMIT, Hub, Repository
from tests.helpers.smoke import smoke_values

ROOT = Path(__file__).resolve().parents[2]
PARAMS = load_params(ROOT / "params.yaml")
MODEL = dataclasses.replace(PARAMS.model, path="owner/mini", precision="no")
HERE = dataclasses.replace(MODEL, path=str(ROOT / "models/miniature"))
CPU = torch.device("cpu")
DOWNLOAD = "`hf download owner/mini`"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has the miniature and its preference model, and an empty cache."""
    with Hub() as running:
        running.repositories = {
            "owner/mini": Repository(ROOT / "models/miniature"),
            "owner/judge": Repository(ROOT / "models/miniature-preference"),
        }
        ask(running.url, tmp_path / "cache", monkeypatch)
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's library ask this address."""
    monkeypatch.setenv("no_proxy", "*")
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }.items():
        monkeypatch.setattr(constants, name, value)


@pytest.fixture
def no_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library alone tries for half a minute."""
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waits to try again"))


def free_port() -> int:
    """Return a port of the loopback at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def refusal(open_it: Callable[[], object]) -> str:
    """Return the message with which it is refused: one line, not long."""
    with pytest.raises(StarError) as caught:
        open_it()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def refused_policy(**changes: object) -> str:
    return refusal(lambda: load_policy(dataclasses.replace(MODEL, **changes), CPU))


@pytest.mark.parametrize(
    ("state", "wanted", "named"),
    [
        ({"gated": True}, {}, ["model.path 'owner/mini'", "{url}/owner/mini", "hf auth login"]),
        ({}, {"path": "owner/minni"}, ["model.path 'owner/minni'", "check the spelling"]),
        ({}, {"revision": "v2"}, ["model.revision 'v2'", "{url}/owner/mini/commits/main"]),
        ({}, {"revision": "0" * 40}, ["model.revision '000", "{url}/owner/mini/commits/main"]),
        ({"status": 503}, {}, ["model.path 'owner/mini'", "HTTP 503; try again later", DOWNLOAD]),
        ({"status": 401}, {}, ["model.path 'owner/mini'", "HTTP 401; log in again", DOWNLOAD]),
    ],
)
@pytest.mark.usefixtures("no_second_try")
def test_a_refusal_of_the_hub_says_what_helps(
    hub: Hub, state: dict, wanted: dict, named: list[str]
) -> None:
    hub.status = state.get("status", 200)
    hub.repositories["owner/mini"].gated = state.get("gated", False)
    message = refused_policy(**wanted)
    assert message.startswith(named[0])
    assert all(part.format(url=hub.url) in message for part in named)


@pytest.mark.parametrize("revision", [None, COMMIT])
@pytest.mark.usefixtures("no_second_try")
def test_without_network_the_download_beforehand_is_named(
    revision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(f"http://127.0.0.1:{free_port()}", tmp_path / "cache", monkeypatch)
    message = refused_policy(revision=revision)
    command = "hf download owner/mini" + (f" --revision {COMMIT}" if revision else "")
    assert message.startswith("model.path 'owner/mini'") and f"`{command}`" in message


def test_offline_mode_is_named_and_nothing_is_asked(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused_policy()
    assert "HF_HUB_OFFLINE" in message and DOWNLOAD in message and hub.requests == []


@pytest.mark.parametrize("place", ["/proc/none/hub", "file/hub"])
def test_a_cache_that_cannot_be_written(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / place))
    message = refused_policy()
    assert f"{tmp_path / place} cannot be written" in message and "set HF_HOME" in message


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "./none", "models/minature", "a/b/c", "two words"]
)
def test_what_is_neither_directory_nor_hub_id_is_not_asked_for(hub: Hub, path: str) -> None:
    assert refused_policy(path=path).startswith(f"model.path '{path}': no such directory")
    assert hub.requests == []


def test_another_pipeline_is_refused_before_its_weights_are_fetched(
    hub: Hub, tmp_path: Path
) -> None:
    folder = shutil.copytree(ROOT / "models/miniature", tmp_path / "flux")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    hub.repositories["owner/flux"] = Repository(folder)
    assert "a FluxPipeline" in refused_policy(path="owner/flux")
    assert hub.requests and not [request for request in hub.requests if "safetensors" in request]


def test_pickled_weights_and_code_are_not_even_fetched(hub: Hub, tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "models/miniature", tmp_path / "pickled")
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    (folder / "vae/autoencoder.py").write_text("raise SystemExit")
    hub.repositories["owner/pickled"] = Repository(folder)
    assert "vae/ has no .safetensors weights" in refused_policy(path="owner/pickled")
    assert not [request for request in hub.requests if ".bin" in request or ".py" in request]


def test_a_variant_of_the_weights_is_named(hub: Hub, tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "models/miniature", tmp_path / "half")
    for weights in folder.rglob("*model.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    hub.repositories["owner/half"] = Repository(folder)
    assert "model.fp16.safetensors; give a model with" in refused_policy(path="owner/half")


def test_models_of_the_rewards_are_refused_alike_and_name_their_own_keys(hub: Hub) -> None:
    pinned = PreferenceParams("owner/judge", "v9", 26.0, "float32")
    message = refusal(lambda: PreferenceReward(pinned, CPU))
    assert message.startswith("rewards.preference.revision 'v9'")
    hub.repositories["owner/judge"].gated = True
    message = refusal(lambda: PreferenceReward(dataclasses.replace(pinned, revision=None), CPU))
    assert message.startswith("rewards.preference.path 'owner/judge': the model is gated")
    named = {"path": "owner/none", "color_path": "owner/judge", "detector": "mask2former"}
    geneval = dataclasses.replace(PARAMS.rewards.geneval, **named)
    assert refusal(lambda: build_detector(geneval)).startswith("rewards.geneval.path 'owner/none'")


def test_models_of_the_rewards_are_fetched_before_anything_is_sampled(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = PreferenceParams("owner/judge", COMMIT, 26.0, "float32")
    rewards = dataclasses.replace(PARAMS.rewards, preference=judge)
    find_models(("geneval", "ocr"), rewards)
    assert hub.requests == []
    find_models(("preference",), rewards)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    PreferenceReward(judge, CPU).close()


def test_a_pinned_model_opens_from_the_hub_and_then_without_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer/model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    hub.repositories["owner/mini"].newer = tmp_path / "newer"
    pinned = dataclasses.replace(MODEL, revision=COMMIT)
    prompts = ["a photo of a red car"]
    local = sample_images(load_policy(HERE, CPU), prompts, [1], 2)
    assert hub.requests == []
    assert (sample_images(load_policy(pinned, CPU), prompts, [1], 2) == local).all()
    resolved = [request for request in hub.requests if "/resolve/" in request]
    assert resolved and all(f"/resolve/{COMMIT}/" in request for request in resolved)
    fetched = {request.rpartition("/")[2] for request in resolved}
    assert "diffusion_pytorch_model.safetensors" in fetched
    assert not {"README.md", "samples.png"} & fetched
    assert "a FluxPipeline" in refused_policy(), "the newest is another"
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (sample_images(load_policy(pinned, CPU), prompts, [1], 2) == local).all()
    assert hub.requests == []


def test_what_the_newest_is_today_is_written_down_as_a_commit(hub: Hub, tmp_path: Path) -> None:
    policy = load_policy(MODEL, CPU)
    policy.add_adapter(seed=0)
    policy.save_adapter(tmp_path / "adapter")
    base = json.loads((tmp_path / "adapter/base.json").read_text())
    assert (base["path"], base["revision"]) == ("owner/mini", COMMIT)
    pinned = dataclasses.replace(MODEL, revision=COMMIT)
    assert encoder_key(policy.model, "cpu") == encoder_key(pinned, "cpu")
    load_policy(HERE, CPU, tmp_path / "adapter")


def test_half_a_model_in_the_cache_is_not_taken_for_a_whole_one(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder("owner/mini", COMMIT, "model.path", DESCRIPTIONS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not complete" in refused_policy(revision=COMMIT)


@pytest.fixture
def commands(
    tmp_path: Path, write_params: Callable[[dict], Path]
) -> Callable[..., list[list[str]]]:
    """`star train` and `star evaluate` of prepared prompts, with changes of `model`."""
    smoke, core = str(ROOT / "tests/smoke/params.yaml"), tmp_path / "core"
    for task in ("geneval", "ocr", "preference"):
        files = {split: str(tmp_path / task / f"{split}.jsonl") for split in ("train", "test")}
        command = ["prompts", "--params", smoke, "--task", task]
        assert main([*command, "--train", files["train"], "--test", files["test"]]) == 0
        for split, file in files.items():
            output = str(core / task / f"{split}.jsonl")
            assert main(["core", "--prompts", file, "--output", output]) == 0

    def make(**model: object) -> list[list[str]]:
        values = smoke_values()
        values["model"] |= {"prompt_cache": str(tmp_path / "cached"), **model}
        values["train"]["tracker"] = "wandb"
        common = ["--params", str(write_params(values)), "--output", str(tmp_path / "out")]
        common += ["--state", str(tmp_path / "state")]
        train = ["train", "--task", "geneval", "--method", "star"]
        train += ["--prompts", str(core / "geneval/train.jsonl")]
        train += ["--held-out", str(core / "geneval/test.jsonl")]
        evaluate = ["evaluate", "--checkpoint", "base", "--prompts-dir", str(core)]
        return [[*train, *common], [*evaluate, *common]]

    return make


def test_train_and_evaluate_end_with_the_one_line(
    hub: Hub,
    tmp_path: Path,
    commands: Callable[..., list[list[str]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for made in ("star.policy.sd3.SD3Policy", "star.rewards.ocr.OcrReward"):
        monkeypatch.setattr(f"{made}.__init__", lambda *_, made=made: pytest.fail(made))
    hub.repositories["owner/mini"].gated = True
    for command in commands(path="owner/mini"):
        capsys.readouterr()
        assert main(command) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"star {command[0]}: error: model.path 'owner/mini'")
    assert not (tmp_path / "out").exists() and not (tmp_path / "state").exists()


@pytest.mark.parametrize("xet", ["", "0"])
def test_a_mirror_gives_files_by_http_unless_xet_is_asked_for(
    hub: Hub, tmp_path: Path, xet: str
) -> None:
    """The mirror passes on where Xet has the data: at an address that takes calls and is silent."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(b"weights")
    hub.repositories["owner/far"] = Repository(tmp_path / "model")
    program = (
        "from star.system.runtime import stay_offline; stay_offline()\n"
        "from star.system.hub import model_folder\n"
        "folder = model_folder('owner/far', None, 'model.path', ['*.safetensors'])\n"
        "print((folder / 'model.safetensors').read_text())"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment |= {"no_proxy": "*", "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_DISABLE_XET", None)
    command, pipe = [sys.executable, "-c", program], subprocess.PIPE
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        hub.xet = f"http://127.0.0.1:{silent.getsockname()[1]}"
        more = {"HF_HUB_DISABLE_XET": xet} if xet else {}
        with subprocess.Popen(command, env=environment | more, stdout=pipe, text=True) as run:
            if xet:
                connection, _ = silent.accept()  # it hangs now
                connection.close()
                run.kill()
            else:
                assert run.communicate(timeout=60)[0] == "weights\n"
    assert any("xet-read-token" in request for request in hub.requests) == bool(xet)


@pytest.mark.slow
def test_the_program_without_network(
    tmp_path: Path, commands: Callable[..., list[list[str]]]
) -> None:
    """A process of its own, with the hub's own settings, at an address where nobody answers."""
    nobody = {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}", "HF_HOME": str(tmp_path / "home")}
    environment = os.environ | nobody | {"no_proxy": "*", "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "star.cli", *commands(path="owner/mini")[0]]
    run = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1].startswith("star train: error: model.path 'owner/mini'")


# Ends the process that asks anyone but the loopback, where wandb has a process of its own.
GUARD = """
import os, socket, sys
connect, look_up = socket.socket.connect, socket.getaddrinfo
def allowed(host):
    if host not in ("127.0.0.1", "localhost"):
        print(f"asked {host}", flush=True)
        os._exit(3)
def guarded_connect(self, address):
    if self.family != socket.AF_UNIX:
        allowed(address[0])
    return connect(self, address)
def guarded_look_up(host, *rest, **options):
    allowed(host)
    return look_up(host, *rest, **options)
socket.socket.connect, socket.getaddrinfo = guarded_connect, guarded_look_up
from star.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_default_run_asks_nobody(
    hub: Hub, tmp_path: Path, commands: Callable[..., list[list[str]]]
) -> None:
    """With models in directories, a training and an evaluation ask neither the hub nor others."""
    environment = os.environ | {
        **{"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
        **{"WANDB_BASE_URL": hub.url, "WANDB_API_KEY": "0" * 40, "WANDB_DIR": str(tmp_path)},
    }
    for command in commands():
        program = [sys.executable, "-c", GUARD, *command]
        run = subprocess.run(program, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert hub.requests == []
