"""Nothing that comes from outside is run: no pickle, no remote code, no shell; nothing is sent anywhere."""

import ast
import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from star.checkpoint import load_state
from star.conditioning import PromptStore
from star.errors import StarError
from star.params import load_params
from star.policy import load_policy
from star.rewards.clip import open_clip

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [file for folder in ("star", "workflow", "benchmarks") for file in sorted((ROOT / folder).rglob("*.py"))]
MODEL = load_params(ROOT / "params.yaml").model

# Names by which Python runs what it reads.
FORBIDDEN = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("eval", "exec", "compile", "__import__", "importlib.import_module", "runpy"),
    *("torch.load", "np.load", "numpy.load", "pandas.read_pickle"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"),
    *("os.system", "os.popen", "subprocess.getoutput"),
}


def names_used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of imports, attributes and plain calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Attribute):
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.lineno, node.func.id


def dangers(source: str) -> list[str]:
    """What of a source would run code from a file, from the network or through a shell."""
    tree = ast.parse(source)
    found = [f"line {line}: {name}" for line, name in names_used(tree) if name in FORBIDDEN]
    for node in ast.walk(tree):
        for keyword in node.keywords if isinstance(node, ast.Call) else ():
            value = ast.unparse(keyword.value)
            if (keyword.arg, value) in {("trust_remote_code", "True"), ("shell", "True"), ("weights_only", "False")}:
                found.append(f"line {keyword.value.lineno}: {keyword.arg}={value}")
            if (keyword.arg, value) == ("use_safetensors", "False"):
                found.append(f"line {keyword.value.lineno}: {keyword.arg}={value}")
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_source_runs_what_it_reads(file):
    assert dangers(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "subprocess.run(command, shell=True)",
        "x.from_pretrained(path, use_safetensors=False)",
        "eval(text)",
        "yaml.load(text, Loader=yaml.Loader)",
    ],
)
def test_the_scan_finds_what_it_looks_for(source):
    assert len(dangers(source)) >= 1


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def trap(tmp_path):
    """A pickle, and the file that shows that somebody opened it."""
    sprung, pickled = tmp_path / "sprung", tmp_path / "payload"
    pickled.write_bytes(pickle.dumps({"weight": Payload(sprung)}))
    yield pickled, sprung
    assert not sprung.exists(), "a pickle was opened"
    pickle.loads(pickled.read_bytes())
    assert sprung.exists(), "the trap works"


@pytest.fixture
def model(tmp_path):
    shutil.copytree(ROOT / MODEL.path, tmp_path / "model")
    return tmp_path / "model"


def opened(path):
    return load_policy(dataclasses.replace(MODEL, path=str(path)), torch.device("cpu"))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"])
def test_a_pickle_in_place_of_the_weights_is_refused(name, model, trap):
    (model / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.copy(trap[0], model / "transformer" / name)
    with pytest.raises(StarError, match=r"model\.path .*transformer|model\.path .*cannot be opened"):
        opened(model)


def test_a_pickle_beside_the_weights_is_left_alone(model, trap):
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "training_args.bin"):
        shutil.copy(trap[0], model / "transformer" / name)
    opened(model)


def test_a_pickle_as_adapter_state_or_prompt_embedding_is_refused(tmp_path, trap):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "optimizer.pt"):
        shutil.copy(trap[0], adapter / name)
    with pytest.raises(StarError, match="not a LoRA adapter"):
        load_policy(MODEL, torch.device("cpu"), adapter)
    with pytest.raises(StarError, match="not a readable training state"):
        load_state(trap[0])
    store = PromptStore(lambda prompts: pytest.fail("the file is there"), tmp_path / "cache", torch.device("cpu"), 1)
    store._file("a prompt").parent.mkdir()
    shutil.copy(trap[0], store._file("a prompt"))
    with pytest.raises(StarError, match="not a readable prompt embedding"):
        store.get(["a prompt"])


CODE = "from pathlib import Path\nPath({path!r}).touch()\nclass Evil:\n    pass\n"


def test_code_in_a_model_directory_is_not_run(model, tmp_path):
    sprung = tmp_path / "sprung"
    for folder in (model, model / "text_encoder", model / "transformer"):
        (folder / "evil.py").write_text(CODE.format(path=str(sprung)))
    index = json.loads((model / "model_index.json").read_text())
    for part, library in (("text_encoder", "evil"), ("transformer", "os"), ("text_encoder", "star.cli")):
        (model / "model_index.json").write_text(json.dumps(index | {part: [library, "Evil"]}))
        with pytest.raises(StarError, match=rf"model\.path .*{part}"):
            opened(model)
    (model / "model_index.json").write_text(json.dumps(index))
    config = json.loads((model / "text_encoder" / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
    (model / "text_encoder" / "config.json").write_text(json.dumps(config))
    opened(model)
    assert not sprung.exists()


def test_code_in_a_reward_model_is_not_run(tmp_path):
    path, sprung = tmp_path / "model", tmp_path / "sprung"
    shutil.copytree(ROOT / "models/miniature-preference", path)
    (path / "evil.py").write_text(CODE.format(path=str(sprung)))
    config = json.loads((path / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}, "model_type": "evil"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StarError, match="cannot be opened as a CLIPModel"):
        open_clip(str(path))
    assert not sprung.exists()


BLOCKED = ["unshare", "--map-root-user", "--net"]  # a network of its own, without a route


@pytest.mark.slow
def test_nothing_is_sent_anywhere(tmp_path):
    """The whole pipeline of the smoke test where there is no network at all, and no wait for one."""
    if subprocess.run([*BLOCKED, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no user make a network namespace")
    reach = "import socket; socket.create_connection(('192.0.2.1', 443), timeout=5)"
    assert b"unreachable" in subprocess.run([*BLOCKED, sys.executable, "-c", reach], capture_output=True).stderr
    shutil.copy(ROOT / "tests/smoke/params.yaml", tmp_path)
    text = (tmp_path / "params.yaml").read_text().replace("../../models", str(ROOT / "models"))
    (tmp_path / "params.yaml").write_text(text.replace("tracker: tensorboard", "tracker: wandb"))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path)]
    command += ["--profile", str(ROOT / "workflow/profiles/default"), "--cores", "2"]
    target = "results/evaluate/geneval-star/scores.json"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        [*BLOCKED, *command, target],
        env={**os.environ, "PATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    assert (tmp_path / target).exists()
