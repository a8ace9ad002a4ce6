"""The command line: stages chained by files, and one-line errors that overwrite nothing."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from star.cli import STAGES, main
from star.config.params import TASKS
from tests.helpers.smoke import set_values

ROOT = Path(__file__).resolve().parents[1]


def star(stage: str, **options: object) -> int:
    """Run a stage; an underscore in an option's name stands for a hyphen."""
    given = (f"--{name.replace('_', '-')}={value}" for name, value in options.items())
    return main([stage, *given])


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a stage that fails, and return its line of error."""

    def run(stage: str, **options: object) -> str:
        capsys.readouterr()
        assert star(stage, **options) == 1
        text = capsys.readouterr().err
        assert text.count("\n") == 1 and text.startswith(f"star {stage}: error: ")
        return text

    return run


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A folder of training and test prompts of all tasks, without core spans."""
    for task in TASKS:
        folder = tmp_path / "prompts" / task
        names = {name: folder / f"{name}.jsonl" for name in ("train", "test")}
        assert star("prompts", task=task, **names) == 0
    return tmp_path / "prompts"


def edited(folder: Path, old: str, new: str) -> Path:
    """The default parameters with one text in place of another."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert old in text
    path = folder / "params.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the miniature."""
    return Path(shutil.copytree(ROOT / "models/miniature", tmp_path / "model"))


def test_help_lists_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], *([stage, "--help"] for stage in STAGES)):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        text = capsys.readouterr().out
        assert all(name in text for name in (STAGES if len(arguments) == 1 else arguments))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("prompts --task ocr --train a --test b --params missing.yaml", "missing.yaml"),
        ("evaluate --checkpoint base --prompts-dir none --output out", "none/geneval/test.jsonl"),
        ("train --task ocr --method ppo --prompts {core} --held-out {core} --output out", "ppo"),
    ],
)
def test_refusals_need_no_torch(arguments: str, named: str, tmp_path: Path) -> None:
    """Nor does a spawned worker, which imports the command line."""
    core = tmp_path / "core.jsonl"
    core.write_text('{"id": "a", "task": "ocr", "prompt": "a", "metadata": {"text": "A"}}\n')
    code = (
        "import sys\nfrom star.cli import main\n"
        f"assert main({arguments.format(core=core).split()!r}) == 1\n"
        "assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0 and named in run.stderr


def test_what_the_output_cannot_encode_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "é.txt").write_text("a cat\n?!\n", encoding="utf-8")
    files = {"train": 1, "test": 4, "train_file": str(tmp_path / "é.txt"), "test_file": None}
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_values(tmp_path / "params.yaml", {"prompts.preference": files})
    command = ["-m", "star.cli", "prompts", "--task", "preference", "--train", "é", "--test", "b"]
    run = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert r"\xe9.txt: 1 lines without a word" in run.stdout
    assert r"1 training prompts in \xe9" in run.stdout


def test_a_tilde_that_the_shell_leaves_is_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    files = {"train": "~/train", "test": "~/test"}
    assert star("prompts", params=ROOT / "params.yaml", task="ocr", **files) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"train", "test"}


def test_wrong_parameters_overwrite_nothing(tmp_path: Path, refused: Callable[..., str]) -> None:
    params, out = edited(tmp_path, "learning_rate:", "learning_rat:"), tmp_path / "train.jsonl"
    out.write_text("precious")
    assert "'learning_rat'" in refused("prompts", params=params, task="ocr", train=out, test=out)
    assert out.read_text() == "precious"


def test_malformed_prompt_file_is_named_with_its_line(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "core.jsonl"
    record = '{"id": "a", "task": "preference", "prompt": "a cat", "metadata": {}}'
    prompts.write_text(f'{record}\n{{"id": \n')
    assert f"{prompts}:2" in refused("core", prompts=prompts, output=out)
    assert "missing.jsonl" in refused("core", prompts="missing.jsonl", output=out)
    assert not out.exists()


@pytest.mark.parametrize("place", ["folder", "file/x", "file/x/y", "x" * 256, "loop/x"])
def test_places_that_cannot_be_written_are_one_line(
    tmp_path: Path, place: str, refused: Callable[..., str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("precious")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    text = refused("prompts", task="ocr", train=tmp_path / place, test=tmp_path / "test.jsonl")
    assert str(tmp_path / place.split("/")[0]) in text and "a place that can be written" in text
    assert (tmp_path / "file").read_text() == "precious"
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("known", [True, False])
def test_a_disk_that_fails_is_one_line_and_a_mistake_of_ours_is_not(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.EIO, "broken", "train.jsonl") if known else ZeroDivisionError

    monkeypatch.setattr("star.prompts.records.write_text_atomic", failing)
    options = {"task": "ocr", "train": tmp_path / "a", "test": tmp_path / "b"}
    if known:
        assert "broken: 'train.jsonl'" in refused("prompts", **options)
    else:
        with pytest.raises(ZeroDivisionError):
            star("prompts", **options)


@pytest.mark.parametrize("rate", ["nan", "-1", "0", "inf", "fast"])
def test_a_rate_must_be_a_positive_number(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = {"task": "ocr", "method": "star", "seed": 0, "rate": rate}
    with pytest.raises(SystemExit) as end:
        star("study-run", **run, prompts="a", held_out="b", output="c")
    assert end.value.code == 2
    assert f"argument --rate: invalid positive float value: '{rate}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["../../x", "ocr-../x", "/tmp/x", "ocr-", "draw-star", "base/x", ""]
)
def test_a_checkpoint_s_name_is_no_path(
    tmp_path: Path, name: str, refused: Callable[..., str]
) -> None:
    text = refused(
        "evaluate", checkpoint=name, prompts_dir=tmp_path, adapter=tmp_path, output=tmp_path
    )
    assert f"--checkpoint {name!r}" in text


def test_images_of_other_weights_or_another_precision_are_not_gone_on_with(
    tmp_path: Path, prompts: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works: list[Path] = []
    params = edited(tmp_path, "path: models/miniature #", f"path: {model} #")
    monkeypatch.setattr(
        "star.evaluation.evaluate.evaluate", lambda *arguments: works.append(arguments[4])
    )
    options = {"params": params, "checkpoint": "base", "prompts_dir": prompts}
    options |= {"output": tmp_path / "out", "state": tmp_path / "state"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for capabilities in ({}, {}, {"amx_bf16": True}):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda found=capabilities: found)
        assert star("evaluate", **options) == 0
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert star("evaluate", **options) == 0
    assert works[0] == works[1] and len(set(works)) == 3
