"""What is refused before a model is opened: folders, adapters, models and prompts; and that it is,
in every stage."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch

from star.config.params import Params, StudyRun
from star.config.reading import load_params
from star.evaluation.evaluate import evaluate
from star.policy.sd3 import load_policy
from star.preflight import check_blocks, check_core
from star.prompts.core_content import with_core
from star.prompts.prepare import prepare
from star.prompts.records import CoreSpan, PromptRecord, write_records
from star.study.run import run_study
from star.system.errors import StarError
from star.system.files import check_writable
from star.training.loop import train

ROOT = Path(__file__).resolve().parents[1]
BASE = load_params(ROOT / "params.yaml")
MODEL = dataclasses.replace(BASE.model, path=str(ROOT / "models/miniature"))


def small(**model: object) -> Params:
    """The default parameters with few prompts; no epoch of them is run."""
    few = {
        task: dataclasses.replace(getattr(BASE.prompts, task), train=8, test=6)
        for task in BASE.runs
    }
    prompts = dataclasses.replace(BASE.prompts, **few)
    return dataclasses.replace(BASE, prompts=prompts, model=dataclasses.replace(MODEL, **model))


def judged_by(**rewards: dict[str, object]) -> Params:
    """The small parameters with changes in sections of the rewards."""
    changed = {
        name: dataclasses.replace(getattr(BASE.rewards, name), **keys)
        for name, keys in rewards.items()
    }
    return dataclasses.replace(small(), rewards=dataclasses.replace(BASE.rewards, **changed))


# ---------------------------------------------------------------- folders


def test_a_folder_that_can_be_made_is_not_made(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep", "it")
    check_writable(tmp_path, "it")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/deep/er", "/proc/none/deep", "loop/deep"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StarError, match=f"^it {tmp_path / place}: cannot be written \\(.+\\)"):
        check_writable(tmp_path / place, "it")


def test_a_prompt_cache_that_fails_later_is_named(tmp_path: Path) -> None:
    """A disk that fills up, say: here the folder has turned into a file."""
    cache = tmp_path / "cache"
    policy = load_policy(small(prompt_cache=str(cache)).model, torch.device("cpu"))
    cache.write_text("in the way")
    with pytest.raises(StarError, match=f"^model.prompt_cache: {cache}/.* cannot be written"):
        policy.prepare_prompts(["a cat"])


# ---------------------------------------------------------------- before anything opens


def no_such_judge(folder: Path) -> Params:
    return judged_by(preference={"path": str(folder / "nowhere")})


def no_detector(folder: Path) -> Params:
    """The preference stand-in is no Mask2Former."""
    path = BASE.rewards.preference.path
    return judged_by(geneval={"detector": "mask2former", "path": path, "color_path": path})


def half_a_model(folder: Path) -> Params:
    copy = Path(copytree(MODEL.path, folder / "model"))
    (copy / "text_encoder_3/model.safetensors").unlink()
    return small(path=str(copy))


def file_as(name: str) -> Callable[[Path], Params]:
    def wrong(folder: Path) -> Params:
        (folder / name).write_text("in the way")
        return small(prompt_cache=str(folder / name) if name == "cache" else None)

    return wrong


@pytest.fixture
def nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model and no reward may be opened."""
    opened = "training.loop.load_policy training.loop.build_reward"
    opened += " evaluation.evaluate.load_policy evaluation.evaluate.build_reward"
    opened += " evaluation.evaluate.Judge study.run.Judge"
    for name in opened.split():
        monkeypatch.setattr(f"star.{name}", lambda *_: pytest.fail("it opens"))


def stages(params: Params, task: str, folder: Path) -> dict[str, Callable[[], None]]:
    """Training, study run and evaluation, each with its folders below ``folder``."""
    prompts, seed = small().prompts, small().seed
    records = with_core(prepare(task, prompts, seed)[0])
    for name in params.runs:
        write_records(folder / "core" / name / "test.jsonl", prepare(name, prompts, seed)[1])
    work, out = folder / "work", folder / "out"
    study = (params, StudyRun(task, "star", 0, 1e-3), records, records, work, out / "run.json")
    return {
        "train": lambda: train(params, task, "star", records, [], work, out),
        "study": lambda: run_study(*study),
        "evaluate": lambda: evaluate(params, "base", None, folder / "core", work, out),
    }


@pytest.mark.usefixtures("nothing_opens")
@pytest.mark.parametrize("stage", ["train", "study", "evaluate"])
@pytest.mark.parametrize(
    ("wrong", "task", "message"),
    [
        (file_as("cache"), "geneval", "model.prompt_cache .*cache: cannot be written"),
        (file_as("work"), "geneval", "the folder of states .*work: cannot be written"),
        (file_as("out"), "geneval", "the output folder .*out: cannot be written"),
        (half_a_model, "geneval", "model.path .* text_encoder_3/ has no .safetensors weights"),
        (no_such_judge, "preference", "rewards.preference.path .*nowhere': no such directory"),
        (no_detector, "geneval", r"rewards.geneval.path .*it is a clip"),
    ],
)
def test_every_stage_refuses_before_it_opens_a_model(
    tmp_path: Path, stage: str, wrong: Callable[[Path], Params], task: str, message: str
) -> None:
    params = wrong(tmp_path)
    with pytest.raises(StarError, match=f"^{message}"):
        stages(params, task, tmp_path)[stage]()
    assert not (tmp_path / "work").is_dir() and not (tmp_path / "out").is_dir()


@pytest.mark.usefixtures("nothing_opens")
@pytest.mark.parametrize("stage", ["train", "study", "evaluate"])
def test_the_first_line_of_every_stage_names_device_and_precision(
    tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StarError):
        stages(half_a_model(tmp_path), "geneval", tmp_path)[stage]()
    first = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(r".+: 1 process on (cpu|cuda \(.+\)), precision (no|bf16)", first)


@pytest.mark.usefixtures("nothing_opens")
def test_an_adapter_folder_without_an_adapter_is_refused_before_the_model_opens(
    tmp_path: Path,
) -> None:
    stages(small(), "geneval", tmp_path)
    adapter, core, work, out = (tmp_path / name for name in ("none", "core", "work", "out"))
    with pytest.raises(StarError, match="no pytorch_lora_weights.safetensors"):
        evaluate(small(), "ocr-star", adapter, core, work, out)


@pytest.mark.usefixtures("nothing_opens")
@pytest.mark.parametrize("stage", ["train", "study"])
def test_trainings_refuse_blocks_that_the_model_lacks_before_it_opens(
    tmp_path: Path, stage: str
) -> None:
    allocation = dataclasses.replace(BASE.allocation, blocks=[0, 8, 999])
    params = dataclasses.replace(small(), allocation=allocation)
    with pytest.raises(StarError, match="^allocation.blocks: no block 8; the model has 0 to 7$"):
        stages(params, "geneval", tmp_path)[stage]()


def test_a_model_that_does_not_count_its_blocks_and_all_of_them_are_let_through(
    tmp_path: Path,
) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text("{}")
    check_blocks(tmp_path, [999])
    check_blocks(Path(MODEL.path), "all")
    check_blocks(Path(MODEL.path), [0, 7])


# ---------------------------------------------------------------- prompts longer than the encoders

# A word and its comma are two tokens.
LONG = "a cat, " + "red, " * 40 + "a horse, " + "red, " * 60 + "a wine glass"


def spanned(prompt: str, *words: str, name: str = "long") -> PromptRecord:
    """A record whose core are these words, where they come last, each a clause of its own."""
    starts = [prompt.rindex(word) for word in words]
    spans = (
        CoreSpan(start, start + len(word), "subject", clause)
        for clause, (start, word) in enumerate(zip(starts, words, strict=True))
    )
    return PromptRecord(name, "geneval", prompt, {"include": [{}] * len(words)}, tuple(spans))


@pytest.fixture
def real_lengths(tmp_path: Path) -> Params:
    """The miniature with SD3.5-M's text lengths: 77 CLIP and 128 T5 tokens."""
    copy = Path(copytree(MODEL.path, tmp_path / "model"))
    for part in ("tokenizer", "tokenizer_2"):
        file = copy / part / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 77}))
    return small(path=str(copy), t5_tokens=128)


def said(
    params: Params, *records: PromptRecord, t5_tokens: int = 128, **allocation: object
) -> list[str]:
    """What is reported of the records."""
    lines: list[str] = []
    model = dataclasses.replace(params.model, t5_tokens=t5_tokens)
    chosen = dataclasses.replace(params.allocation, **allocation)
    check_core(Path(model.path), model, params.core, chosen, records, lines.append)
    return lines


def test_core_words_beyond_the_encoders_are_named_with_their_record(real_lengths: Params) -> None:
    short, long = spanned("a cat", "cat", name="short"), spanned(LONG, "cat", "horse", "wine glass")
    t5 = "'wine', 'glass' not among 128 T5 tokens"
    (line,) = said(real_lengths, short, long)
    assert line.startswith("warning: long: ")
    assert line.endswith(f": 'horse', 'wine', 'glass' not among 77 CLIP tokens; {t5}")
    (line,) = said(real_lengths, long, encoders={"clip": 0.0, "t5": 1.0})
    assert line.endswith(f": {t5}")
    assert said(real_lengths, long, source="uniform") == [] == said(real_lengths, long, lam=0.0)


def test_of_a_word_that_is_cut_the_letters_that_fall_off_are_named(real_lengths: Params) -> None:
    """T5's tokens of an unknown word are letters."""
    (line,) = said(real_lengths, spanned('a sign that says "HOUSE"', "HOUSE"), t5_tokens=8)
    assert line.endswith(": 'USE' not among 8 T5 tokens")


def test_a_long_report_is_cut_short(real_lengths: Params) -> None:
    records = [spanned(LONG, "cat", "horse", name=f"prompt-{i}") for i in range(25)]
    lines = said(real_lengths, *records)
    assert len(lines) == 11 and lines[-1] == "warning: and 15 prompts more"


def test_prompts_without_any_core_token_are_refused_together(real_lengths: Params) -> None:
    first, other = spanned(LONG, "wine glass", name="first"), spanned(LONG, "glass", name="other")
    records = [first, spanned("a cat", "cat"), other]
    named = r"^prompt first: .*'wine glass'.* 77 CLIP and 128 .*other.* raise model.t5_tokens$"
    with pytest.raises(StarError, match=named):
        said(real_lengths, *records)
    assert said(real_lengths, *records, t5_tokens=256), "T5 sees it now, CLIP does not"


def test_a_clause_without_any_core_token_is_refused_where_clauses_have_maps(
    real_lengths: Params,
) -> None:
    record = spanned(LONG, "cat", "wine glass")
    assert len(said(real_lengths, record)) == 1
    with pytest.raises(StarError, match=r"^prompt long: no core content \('wine glass'\)"):
        said(real_lengths, record, clause_wise=True)


@pytest.mark.usefixtures("nothing_opens")
def test_trainings_report_and_refuse_their_prompts_before_they_open_a_model(
    real_lengths: Params,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut, lost = spanned(LONG, "cat", "horse"), spanned(LONG, "wine glass")
    work, out = tmp_path / "work", tmp_path / "out"
    with pytest.raises(StarError, match="^prompt long: no core content"):
        train(real_lengths, "geneval", "star", [lost], [], work, out)
    with pytest.raises(StarError, match="^prompt long: no core content"):
        star = StudyRun("geneval", "star", 0, 1e-3)
        run_study(real_lengths, star, [lost], [], work, out / "run.json")

    class Opened(Exception):
        pass

    def opened(*_: object) -> None:
        raise Opened

    monkeypatch.setattr("star.training.loop.build_reward", opened)
    with pytest.raises(Opened):
        train(real_lengths, "geneval", "star", [cut], [], work, out)
    assert "'horse' not among 77 CLIP" in capsys.readouterr().out
    with pytest.raises(Opened):  # no maps, no core content needed
        train(real_lengths, "geneval", "flow_grpo", [lost], [], work, out)
