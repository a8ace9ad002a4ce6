"""Nothing from outside is run or opened as a pickle, and nothing is sent anywhere.

The linter refuses most of it in Python sources (ruff's S rules and banned names in pyproject.toml).
Here is what it does not know, and what happens to evil files."""

import dataclasses
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import tokenize
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from snakemake.common.configfile import load_configfile

from star.config.reading import load_params
from star.policy.conditioning import PromptStore
from star.policy.sd3 import load_policy
from star.rewards.clip import Clip
from star.system.errors import StarError
from star.training.checkpoint import load_state

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    *(
        file
        for name in ("star", "workflow", "benchmarks", "docs")
        for file in sorted((ROOT / name).rglob("*.py"))
    ),
    *(ROOT / "Snakefile", *sorted((ROOT / "workflow").rglob("*.smk"))),
]
MODEL = load_params(ROOT / "params.yaml").model
Trap = tuple[Path, Path]
RUFF = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
BANNED = {name.rpartition(".")[2] for name in RUFF["flake8-tidy-imports"]["banned-api"]}

# In code whose tokens are parted by spaces.
DANGERS = r"""
    (?<!\.[ ])(?<!def[ ])\b(?<!["'])(?:eval|exec|compile|__import__)\b(?![ ][:=][ ])
  | =[ ](?:torch|numpy|np|os|yaml|importlib|builtins)[ ][\n;]  # another name for a module
  | \b(?:trust_remote_code|allow_pickle|shell)(?:[ ]=|["'][ ]:)[ ](?!False\b)
  | \b(?:weights_only|use_safetensors)(?:[ ]=|["'][ ]:)[ ](?!True\b)
  | ["'](?:/\w+)*/?(?:ba|da|fi|k|z)?sh["'][ ],[ ]["']-[a-z]*c["']
"""
IN_PYTHON = re.compile(DANGERS, re.X)
# Snakemake's files, which ruff does not read; star.system is a package.
IN_RULES = re.compile(rf"(?<!star[ ]\.[ ])\b(?:{'|'.join(BANNED)})\b | {DANGERS}", re.X)


def dangers(source: str, known: re.Pattern[str]) -> list[str]:
    """Return the parts of a source, its comments and prose aside, that may run what they read."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    prose = (tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.COMMENT))
    words = (token.string for token in tokens if token.type not in prose)
    code = " ".join(word for word in words if not re.search(r"""["'].*\s""", word, re.S))
    return [match[0] for match in known.finditer(code)]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_source_runs_what_it_reads(file: Path) -> None:
    known = IN_PYTHON if file.suffix == ".py" else IN_RULES
    assert dangers(file.read_text(encoding="utf-8"), known) == []


@pytest.mark.parametrize(
    "line",
    [
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path, **{'trust_remote_code': True})",
        "x.from_pretrained(path, use_safetensors=False)",
        "numpy.lib.npyio.NpzFile(path, allow_pickle=True)",
        "f(weights_only=flag)",
        "subprocess.run(command, shell=flag)",
        "subprocess.run(['sh', '-c', text])",
        "subprocess.run(('/bin/bash', '-lc', text))",
        "t = torch; t.load(path)",
        "f = eval; f(text)",
        "map(exec, texts)",
        "compile(text, name, 'exec')",
    ],
)
def test_the_scan_finds_what_the_linter_does_not(line: str) -> None:
    rule = 'rule a:\n    input: "b"\n    shell:\n        "c"\n'
    assert dangers(line, IN_PYTHON) and dangers(rule + line + "\n", IN_RULES)
    assert not dangers("re.compile(x); f(shell=False, weights_only=True)", IN_PYTHON)
    assert not dangers(rule, IN_RULES)


@pytest.mark.parametrize(
    "line", ["import pickle", "from torch import load as x", "os.popen(x)", 'configfile: "a.yaml"']
)
def test_the_scan_finds_in_rules_what_the_linter_finds_in_python(line: str) -> None:
    assert dangers(line, IN_RULES)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    """A pickle, and the file that shows that somebody opened it."""
    sprung, pickled = tmp_path / "sprung", tmp_path / "payload"
    pickled.write_bytes(pickle.dumps({"weight": Payload(sprung)}))
    yield pickled, sprung
    assert not sprung.exists(), "a pickle was opened"
    pickle.loads(pickled.read_bytes())
    assert sprung.exists(), "the trap works"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / MODEL.path, tmp_path / "model"))


def opened(path: Path) -> None:
    load_policy(dataclasses.replace(MODEL, path=str(path)), torch.device("cpu"))


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", WEIGHTS])
def test_a_pickle_in_place_of_the_weights_is_refused(name: str, model: Path, trap: Trap) -> None:
    (model / "transformer" / WEIGHTS).unlink()
    shutil.copy(trap[0], model / "transformer" / name)
    with pytest.raises(StarError, match=r"model\.path .*(transformer|SD3Transformer)"):
        opened(model)


def test_a_pickle_beside_the_weights_is_left_alone(model: Path, trap: Trap) -> None:
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "training_args.bin"):
        shutil.copy(trap[0], model / "transformer" / name)
    opened(model)


def test_a_pickle_as_adapter_state_or_prompt_embedding_is_refused(
    tmp_path: Path, trap: Trap
) -> None:
    adapter, device = tmp_path / "adapter", torch.device("cpu")
    adapter.mkdir()
    for name in ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "optimizer.pt"):
        shutil.copy(trap[0], adapter / name)
    with pytest.raises(StarError, match=str(adapter)):
        load_policy(MODEL, device, adapter)
    with pytest.raises(StarError, match=str(trap[0])):
        load_state(trap[0])
    cache = tmp_path / "cache"
    store = PromptStore(lambda prompts: pytest.fail("the file is there"), cache, device, 1)
    store._file("a prompt").parent.mkdir()
    shutil.copy(trap[0], store._file("a prompt"))
    with pytest.raises(StarError, match=str(cache)):
        store.get(["a prompt"])


def plant_code(folder: Path, sprung: Path) -> None:
    """Put code into a model's directory that its configuration asks for."""
    (folder / "evil.py").write_text(f"open({str(sprung)!r}, 'w')\nclass Evil:\n    pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))


def test_code_in_a_model_directory_is_not_run(model: Path, tmp_path: Path) -> None:
    sprung, index = tmp_path / "sprung", model / "model_index.json"
    for part in ("text_encoder", "transformer"):
        plant_code(model / part, sprung)
    opened(model)
    shutil.copy(model / "transformer/evil.py", model)
    values = json.loads(index.read_text())
    evil = (("text_encoder", "evil"), ("transformer", "os"), ("text_encoder", "star.cli"))
    for part, library in evil:
        index.write_text(json.dumps(values | {part: [library, "Evil"]}))
        with pytest.raises(StarError, match=rf"model\.path .*{part}"):
            opened(model)
    assert not sprung.exists()


def test_code_in_a_reward_model_is_not_run(tmp_path: Path) -> None:
    path, sprung = tmp_path / "model", tmp_path / "sprung"
    shutil.copytree(ROOT / "models/miniature-preference", path)
    plant_code(path, sprung)
    config = json.loads((path / "config.json").read_text()) | {"model_type": "evil"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StarError, match=str(path)):
        Clip(str(path))
    assert not sprung.exists()


def test_expressions_in_a_parameter_file_are_not_run(
    tmp_path: Path, snakemake: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Snakemake's own loader has YTE evaluate them in a file that asks for it."""
    sprung, params = tmp_path / "sprung", tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", params)
    with open(params, "a", encoding="utf-8") as file:
        file.write(f"""\n__use_yte__: true\n"?open({str(sprung)!r}, 'w').name": 1\n""")
    run = snakemake("--dry-run")
    assert run.returncode != 0
    assert re.search("params.yaml: .*__use_yte__", run.stdout + run.stderr)
    assert not sprung.exists()
    load_configfile(params)
    assert sprung.exists(), "the trap works"
