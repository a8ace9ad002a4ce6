"""Models by hub id, from a hub on the loopback: what is refused says what to do, what is there
opens, pinned, again."""

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
import yaml
from huggingface_hub import constants

from star.cli import main
from star.config.params import PreferenceParams, load_params
from star.policy.rollout import sample_images
from star.policy.sd3 import encoder_key, load_policy
from star.rewards.factory import build_detector, find_models
from star.rewards.preference import PreferenceReward
from star.system.errors import StarError
from star.system.hub import DESCRIPTIONS, model_folder
from tests.helpers.fake_hub import COMMIT, Hub, Repository

ROOT = Path(__file__).resolve().parents[2]
PARAMS = load_params(ROOT / "params.yaml")
MODEL = dataclasses.replace(PARAMS.model, path="owner/mini", precision="no")
CPU = torch.device("cpu")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has the miniature and its preference stand-in, and an empty cache."""
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
    """Have the hub's library ask this address."""
    monkeypatch.setenv("no_proxy", "*")
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }.items():
        monkeypatch.setattr(constants, name, value)


def free_port() -> int:
    """A port of the loopback at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def refusal(open_it: Callable[[], object]) -> str:
    """The message with which it is refused: one line, not long."""
    with pytest.raises(StarError) as caught:
        open_it()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def refused_policy(**changes: object) -> str:
    return refusal(lambda: load_policy(dataclasses.replace(MODEL, **changes), CPU))


# ---------------------------------------------------------------- what is refused


def test_a_gated_model_says_where_its_licence_is(hub: Hub) -> None:
    hub.repositories["owner/mini"].gated = True
    message = refused_policy()
    assert message.startswith("model.path 'owner/mini': the model is gated")
    assert f"accept its licence at {hub.url}/owner/mini" in message and "hf auth login" in message


def test_a_model_that_is_not_on_the_hub(hub: Hub) -> None:
    message = refused_policy(path="owner/minni")
    assert message.startswith(
        "model.path 'owner/minni': no directory here, and no such model on the hub"
    )
    assert "check the spelling" in message
    assert len(hub.requests) == 1


@pytest.mark.parametrize("revision", ["v2", "0" * 40])
def test_a_revision_that_does_not_exist_is_named_by_its_own_key(hub: Hub, revision: str) -> None:
    message = refused_policy(revision=revision)
    assert message.startswith(f"model.revision '{revision}': owner/mini has no such revision")
    assert f"{hub.url}/owner/mini/commits/main" in message


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_without_network_the_download_beforehand_is_named(
    revision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: the library alone tries for half a minute where a commit is named."""
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waits to try again"))
    ask(f"http://127.0.0.1:{free_port()}", tmp_path / "cache", monkeypatch)
    message = refused_policy(revision=revision)
    assert message.startswith("model.path 'owner/mini': not complete in the hub's cache")
    assert "cannot be reached" in message and "refused" in message
    command = "hf download owner/mini" + (f" --revision {COMMIT}" if revision else "")
    assert (
        f"download it beforehand where there is network (`{command}`), or give a directory"
        in message
    )


def test_offline_mode_is_named_and_nothing_is_asked(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused_policy()
    assert "HF_HUB_OFFLINE forbids" in message and "`hf download owner/mini`" in message
    assert hub.requests == []


def test_a_hub_that_is_down_and_a_login_that_is_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waits to try again"))
    hub.status = 503
    assert "answers HTTP 503; try again later" in refused_policy()
    hub.status = 401
    assert "answers HTTP 401; log in anew" in refused_policy()


@pytest.mark.parametrize("place", ["/proc/none/hub", "file/hub"])
def test_a_cache_that_cannot_be_written(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / place))
    message = refused_policy()
    assert (
        f"the hub's cache {tmp_path / place} cannot be written" in message
        and "set HF_HOME" in message
    )


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "./none", "models/minature", "a/b/c", "two words"]
)
def test_what_is_neither_directory_nor_hub_id_is_not_asked_for(hub: Hub, path: str) -> None:
    assert refused_policy(path=path).startswith(
        f"model.path '{path}': no such directory, and no hub id"
    )
    assert hub.requests == []


def test_another_pipeline_is_refused_before_its_weights_are_fetched(
    hub: Hub, tmp_path: Path
) -> None:
    folder = tmp_path / "flux"
    shutil.copytree(ROOT / "models/miniature", folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    hub.repositories["owner/flux"] = Repository(folder)
    message = refused_policy(path="owner/flux")
    assert message == "model.path 'owner/flux': a FluxPipeline, not a StableDiffusion3Pipeline"
    assert hub.requests and not [request for request in hub.requests if "safetensors" in request]


def test_pickled_weights_and_code_are_not_even_fetched(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(ROOT / "models/miniature", folder)
    (folder / "vae/diffusion_pytorch_model.safetensors").rename(
        folder / "vae/diffusion_pytorch_model.bin"
    )
    (folder / "vae/autoencoder.py").write_text("raise SystemExit")
    hub.repositories["owner/pickled"] = Repository(folder)
    assert "vae/ has no .safetensors weights" in refused_policy(path="owner/pickled")
    assert not [request for request in hub.requests if ".bin" in request or ".py" in request]


def test_models_of_the_rewards_are_refused_alike_and_name_their_own_keys(hub: Hub) -> None:
    hub.repositories["owner/judge"].gated = True
    message = refusal(
        lambda: PreferenceReward(PreferenceParams("owner/judge", None, 26.0, "float32"), CPU)
    )
    assert message.startswith(
        "rewards.preference.path 'owner/judge': the model is gated; accept its licence"
    )
    geneval = dataclasses.replace(PARAMS.rewards.geneval, detector="mask2former")
    named = dataclasses.replace(geneval, path="owner/none", color_path="owner/judge")
    message = refusal(lambda: build_detector(named))
    assert message.startswith(
        "rewards.geneval.path 'owner/none': no directory here, and no such model on the hub"
    )
    pinned = PreferenceParams("owner/judge", "v9", 26.0, "float32")
    message = refusal(lambda: PreferenceReward(pinned, CPU))
    assert message.startswith("rewards.preference.revision 'v9': owner/judge has no such revision")


def test_models_of_the_rewards_are_fetched_before_anything_is_drawn(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = PreferenceParams("owner/judge", COMMIT, 26.0, "float32")
    rewards = dataclasses.replace(PARAMS.rewards, preference=judge)
    find_models(("geneval", "ocr"), rewards)
    assert hub.requests == []
    find_models(("preference",), rewards)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    PreferenceReward(judge, CPU).close()


# ---------------------------------------------------------------- what is there


def test_a_pinned_model_opens_from_the_hub_and_then_without_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    hub.repositories["owner/mini"].newer = newer
    pinned = dataclasses.replace(MODEL, revision=COMMIT)
    prompts = ["a photo of a red car"]
    local = sample_images(
        load_policy(dataclasses.replace(MODEL, path="models/miniature"), CPU), prompts, [1], 2
    )
    assert hub.requests == []
    assert (sample_images(load_policy(pinned, CPU), prompts, [1], 2) == local).all()
    fetched = [
        request.rsplit("/", 1)[1]
        for request in hub.requests
        if request.startswith("GET /owner/mini/resolve")
    ]
    assert "diffusion_pytorch_model.safetensors" in fetched and not {
        "README.md",
        "samples.png",
    } & set(fetched)
    assert all(
        f"/resolve/{COMMIT}/" in request for request in hub.requests if "/resolve/" in request
    )
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
    assert encoder_key(policy.model, "cpu") == encoder_key(
        dataclasses.replace(MODEL, revision=COMMIT), "cpu"
    )
    load_policy(dataclasses.replace(MODEL, path="models/miniature"), CPU, tmp_path / "adapter")


def test_half_a_model_in_the_cache_is_not_taken_for_a_whole_one(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder("owner/mini", COMMIT, "model.path", DESCRIPTIONS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not complete in the hub's cache" in refused_policy(revision=COMMIT)


# ---------------------------------------------------------------- the command line


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """core/<task>/{train,test}.jsonl."""
    for task in ("geneval", "ocr", "preference"):
        raw, core = tmp_path / "prompts" / task, tmp_path / "core" / task
        values = [
            "--task",
            task,
            "--train",
            str(raw / "train.jsonl"),
            "--test",
            str(raw / "test.jsonl"),
        ]
        assert main(["prompts", "--params", str(ROOT / "tests/smoke/params.yaml"), *values]) == 0
        for split in ("train.jsonl", "test.jsonl"):
            assert main(["core", "--prompts", str(raw / split), "--output", str(core / split)]) == 0
    return tmp_path / "core"


def write_params(folder: Path, **model: object) -> Path:
    values = yaml.safe_load((ROOT / "tests/smoke/params.yaml").read_text(encoding="utf-8"))
    values["model"] |= {
        "path": str(ROOT / "models/miniature"),
        "prompt_cache": str(folder / "cached"),
        **model,
    }
    values["rewards"]["preference"]["path"] = str(ROOT / "models/miniature-preference")
    values["train"]["tracker"] = "wandb"
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def commands(folder: Path, params: Path, core: Path) -> list[list[str]]:
    """`star train` and `star evaluate`."""
    common = [
        "--params",
        str(params),
        "--output",
        str(folder / "out"),
        "--state",
        str(folder / "state"),
    ]
    chosen = [
        "--task",
        "geneval",
        "--method",
        "star",
        "--prompts",
        str(core / "geneval/train.jsonl"),
    ]
    return [
        ["train", *chosen, *common],
        ["evaluate", "--checkpoint", "base", "--prompts-dir", str(core), *common],
    ]


def test_train_and_evaluate_end_with_the_one_line(
    hub: Hub,
    tmp_path: Path,
    records: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "star.policy.sd3.SD3Policy.__init__", lambda *_: pytest.fail("a policy was made")
    )
    monkeypatch.setattr(
        "star.rewards.ocr.OcrReward.__init__", lambda *_: pytest.fail("a reward was made")
    )
    hub.repositories["owner/mini"].gated = True
    capsys.readouterr()
    for command in commands(tmp_path, write_params(tmp_path, path="owner/mini"), records):
        assert main(command) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(
            f"star {command[0]}: error: model.path 'owner/mini': the model is gated"
        )
    assert not (tmp_path / "out").exists() and not (tmp_path / "state").exists()


@pytest.mark.slow
def test_the_program_without_network(tmp_path: Path, records: Path) -> None:
    """As a user meets it: a process of its own, with the hub's own settings, at an address where
    nobody answers."""
    command = commands(tmp_path, write_params(tmp_path, path="owner/mini"), records)[0]
    env = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "HF_HOME": str(tmp_path / "home"),
    }
    env |= {"no_proxy": "*", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-m", "star.cli", *command], env=env, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith(
        "star train: error: model.path 'owner/mini': not complete in the hub's cache"
    )


# wandb, which is offline, talks to a process of its own over the loopback.
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
def test_a_default_run_asks_nobody(hub: Hub, tmp_path: Path, records: Path) -> None:
    """Models in directories: neither the hub nor anyone else hears of a training or an
    evaluation."""
    env = os.environ | {
        "HF_ENDPOINT": hub.url,
        "WANDB_BASE_URL": hub.url,
        "WANDB_API_KEY": "0" * 40,
    }
    env |= {
        "HF_HOME": str(tmp_path / "home"),
        "WANDB_DIR": str(tmp_path),
        "no_proxy": "*",
        "PYTHONPATH": str(ROOT),
    }
    params = write_params(tmp_path)
    assert "tracker: wandb" in params.read_text()
    for command in commands(tmp_path, params, records):
        run = subprocess.run(
            [sys.executable, "-c", GUARD, *command], env=env, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert hub.requests == []
