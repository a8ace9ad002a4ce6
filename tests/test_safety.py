"""Nothing that comes from outside is run: no pickle, no remote code, no shell; nothing is sent
anywhere."""

import ast
import dataclasses
import io
import json
import keyword
import os
import pickle
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from snakemake.common.configfile import load_configfile

from star.config.params import load_params
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

# By which Python runs what it reads: modules, full names, and names that mean it wherever they come
# from.
MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "runpy",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN = {
    *(f"builtins.{name}" for name in BUILTINS),
    *(
        f"{name}.load"
        for name in ("torch", "torch.hub", "torch.jit", "torch.package", "np", "numpy")
    ),
    *("os.system", "os.popen", "yaml.Loader", "yaml.load_all"),
}
ENDINGS = {
    *("import_module", "read_pickle", "load_state_dict_from_url", "getoutput", "getstatusoutput"),
    *("unsafe_load", "unsafe_load_all", "full_load", "full_load_all"),
    *(
        "configfile",
        "load_configfile",
        "_load_configfile",
        "process_yaml",
    ),  # they run what a file has after `?`
    *("CLoader", "UnsafeLoader", "CUnsafeLoader", "FullLoader", "CFullLoader"),
}
# Arguments, and the one value that each may have.
SAFE = {
    "trust_remote_code": False,
    "shell": False,
    "allow_pickle": False,
    "weights_only": True,
    "use_safetensors": True,
}
SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish"}


def known_names(tree: ast.AST) -> dict[str, str]:
    """Names that a source gives to what it imports, and to other names."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            known |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name | ast.Attribute):
            value = full_name(node.value, known)
            known |= {
                name.id: value
                for name in node.targets
                if isinstance(name, ast.Name) and name.id != value
            }
    return known


def full_name(node: ast.AST, known: dict[str, str]) -> str:
    first, *rest = ast.unparse(node).split(".")
    return ".".join([known.get(first, first), *rest])


def is_forbidden(name: str) -> bool:
    first, last = name.split(".")[0], name.rsplit(".", 1)[-1]
    return first in MODULES or name in FORBIDDEN | BUILTINS or last in ENDINGS


def names_used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of imports, attributes and names."""
    known = known_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.lineno, full_name(node, known)


def arguments(tree: ast.AST) -> Iterator[tuple[int, str, ast.AST]]:
    """Line, name and value of every argument by name, in a call or in a dictionary that may become
    one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg:
            yield node.value.lineno, node.arg, node.value
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield value.lineno, key.value, value


def starts_a_shell(node: ast.AST) -> bool:
    """Whether it is a command such as ``["sh", "-c", ...]``."""
    if not isinstance(node, ast.List | ast.Tuple):
        return False
    words = [
        part.value
        for part in node.elts[:2]
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    return (
        len(words) == 2
        and words[0].rsplit("/", 1)[-1] in SHELLS
        and re.fullmatch("-[a-z]*c", words[1]) is not None
    )


def dangers(source: str) -> list[str]:
    """What of a source would run code from a file, from the network or through a shell."""
    tree = ast.parse(source)
    found = [f"line {line}: {name}" for line, name in names_used(tree) if is_forbidden(name)]
    for line, name, value in arguments(tree):
        if name in SAFE and not (isinstance(value, ast.Constant) and value.value is SAFE[name]):
            found.append(f"line {line}: {name}={ast.unparse(value)}")
    return found + [
        f"line {node.lineno}: a shell" for node in ast.walk(tree) if starts_a_shell(node)
    ]


def as_python(rules: str) -> str:
    """Imports, names, arguments and lists of words of a Snakemake file, whose directives are no
    Python."""
    lines = [
        line
        for line in map(str.strip, rules.splitlines())
        if re.match(r"(from [\w.]+ )?import [\w., ]+$", line)
    ]
    tokens = [
        t.string
        for t in tokenize.generate_tokens(io.StringIO(rules).readline)
        if t.type != tokenize.COMMENT
    ]
    code = " ".join(token for token in tokens if token.strip())
    names = re.findall(r"[^\W\d]\w*(?: \. \w+)*", re.sub(r"""(['"]).*?\1""", "", code))
    lines += [name for name in names if not any(map(keyword.iskeyword, name.split(" . ")))]
    lines += [
        f"f({name}={value})" for name, value in re.findall(rf"\b({'|'.join(SAFE)}) = (\w+)", code)
    ]
    lines += [
        f"[{first}, {second}]"
        for first, second in re.findall(r"""[\[(] ("\w+") , ("-\w+")""", code)
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_source_runs_what_it_reads(file):
    text = file.read_text(encoding="utf-8")
    assert dangers(text if file.suffix == ".py" else as_python(text)) == []


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
        "import torch as t; t.load(path)",
        "from torch import load; load(path)",
        "from torch import load as read; read(path)",
        "import torch; t = torch; t.load(path)",
        "torch.hub.load(name, model)",
        "from torch import hub; hub.load(name, model)",
        "torch.jit.load(path)",
        "import numpy as n; n.load(path)",
        "import pandas as pd; pd.read_pickle(path)",
        "numpy.lib.npyio.NpzFile(path, allow_pickle=True)",
        "subprocess.run(command, shell=1)",
        "subprocess.run(command, shell=flag)",
        "import builtins; builtins.exec(text)",
        "from builtins import exec as run; run(text)",
        "f = eval; f(text)",
        "map(eval, texts)",
        "yaml.load(text, Loader=yaml.CLoader)",
        "yaml.unsafe_load_all(text)",
        "from yaml import UnsafeLoader as Loader",
        "subprocess.run(['sh', '-c', text])",
        "subprocess.run(('/bin/bash', '-lc', text))",
        "AutoModel.from_pretrained(path, **{'trust_remote_code': True})",
        "import importlib as i; i.import_module(name)",
        "from os import system",
        "import os as o; o.popen(text)",
        "from snakemake.common.configfile import load_configfile as read; read(path)",
        "import yte; yte.process_yaml(text)",
    ],
)
def test_the_scan_finds_what_it_looks_for(source):
    assert len(dangers(source)) >= 1


@pytest.mark.parametrize(
    "source",
    [
        "re.compile(text)",
        "policy.compile()",
        "f(shell=False, weights_only=True)",
        "yaml.safe_load(text)",
    ],
)
def test_the_scan_lets_the_rest_pass(source):
    assert dangers(source) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "values = eval(text)",
        "from torch import load as read",
        "params: torch.load('a')",
        "run(text, shell=True)",
        'run(["sh", "-c", text])',
        'configfile: "params.yaml"',
    ],
)
def test_the_scan_reads_rules(line):
    rule = 'rule a:\n    input: "b"\n    run:\n        '
    assert dangers(as_python(rule + "print(1)\n")) == []
    assert len(dangers(as_python(rule + line + "\n"))) >= 1


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


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"]
)
def test_a_pickle_in_place_of_the_weights_is_refused(name, model, trap):
    (model / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.copy(trap[0], model / "transformer" / name)
    with pytest.raises(
        StarError, match=r"model\.path .*transformer|model\.path .*cannot be opened"
    ):
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
    store = PromptStore(
        lambda prompts: pytest.fail("the file is there"), tmp_path / "cache", torch.device("cpu"), 1
    )
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
    for part, library in (
        ("text_encoder", "evil"),
        ("transformer", "os"),
        ("text_encoder", "star.cli"),
    ):
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
    config |= {
        "auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"},
        "model_type": "evil",
    }
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StarError, match="cannot be opened as a CLIPModel"):
        Clip(str(path))
    assert not sprung.exists()


def test_expressions_in_a_parameter_file_are_not_run(tmp_path, snakemake):
    """YTE evaluates them, to which Snakemake's own loader gives a file that asks for it."""
    sprung, params = tmp_path / "sprung", tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", params)
    with open(params, "a", encoding="utf-8") as file:
        file.write(f"""\n__use_yte__: true\n"?open({str(sprung)!r}, 'w').name": 1\n""")
    run = snakemake("--dry-run")
    assert run.returncode != 0
    assert "params.yaml: top level: unknown key '__use_yte__'" in run.stdout + run.stderr
    assert not sprung.exists()
    load_configfile(params)
    assert sprung.exists(), "the trap works"


BLOCKED = ["unshare", "--map-root-user", "--net"]  # a network of its own, without a route


@pytest.mark.slow
def test_nothing_is_sent_anywhere(tmp_path):
    """The whole pipeline of the smoke test where there is no network at all, and no wait for
    one."""
    if subprocess.run([*BLOCKED, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no user make a network namespace")
    reach = "import socket; socket.create_connection(('192.0.2.1', 443), timeout=5)"
    assert (
        b"unreachable"
        in subprocess.run([*BLOCKED, sys.executable, "-c", reach], capture_output=True).stderr
    )
    shutil.copy(ROOT / "tests/smoke/params.yaml", tmp_path)
    text = (tmp_path / "params.yaml").read_text().replace("../../models", str(ROOT / "models"))
    (tmp_path / "params.yaml").write_text(text.replace("tracker: tensorboard", "tracker: wandb"))
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--directory",
        str(tmp_path),
    ]
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
