"""The parameter file: what is read, and every kind of mistake refused by name before torch."""

import copy
import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from star.config.explain import ANY_NAME, all_keys
from star.config.params import Params, PromptSource, fingerprint
from star.config.reading import load_params
from star.config.yaml_file import read_values
from star.system.errors import StarError
from tests.helpers.sections import all_keys as all_keys_of

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = read_values(ROOT / "params.yaml")
SOURCE = {"url": "https://a.org/commit/test.txt", "sha256": "0123456789abcdef" * 4}
WRONG = read_values(Path(__file__).with_name("wrong_values.yaml"))

Write = Callable[[dict], Path]


def changed(values: dict, key: str, *value: Any) -> dict:
    """A copy with one dotted key set, or left out where no value is given."""
    values = copy.deepcopy(values)
    *parents, last = key.split(".")
    node = values
    for part in parents:
        node = node[part]
    if value:
        node[last] = value[0]
    else:
        del node[last]
    return values


def refused(given: Path | dict) -> str:
    """Return the one line with which a file is refused, or values as if a file had them."""
    path = given if isinstance(given, Path) else Path("params.yaml")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StarError) as caught:
        if isinstance(given, dict):
            patch.setattr("star.config.reading.read_values", lambda _: given)
        load_params(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < len(str(path)) + 600
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


# ---------------------------------------------------------------- what is read


def test_default_file_is_accepted_and_typed() -> None:
    params = load_params(ROOT / "params.yaml")
    assert dataclasses.asdict(params) == DEFAULT
    assert isinstance(params.train.max_grad_norm, float)
    assert isinstance(params.rewards.timeout, float), "a whole number in the file"


def test_whole_floats_become_integers(write_params: Write) -> None:
    params = load_params(write_params(changed(DEFAULT, "train.epochs", 8.0)))
    assert (params.train.epochs, type(params.train.epochs)) == (8, int)


@pytest.mark.parametrize(
    "url",
    [
        *(SOURCE["url"], "http://127.0.0.1:8000/test.txt"),
        *("http://localhost/a", "https://a.org:443/?b=c"),
    ],
)
@pytest.mark.parametrize("sha256", [SOURCE["sha256"], None])
def test_a_prompt_file_may_be_a_source(url: str, sha256: str | None, write_params: Write) -> None:
    source = {"url": url, "sha256": sha256}
    values = changed(DEFAULT, "prompts.ocr.test_file", source)
    sets = load_params(write_params(changed(values, "prompts.ocr.train_file", "a.txt"))).prompts.ocr
    assert sets.test_file == PromptSource(url, sha256) and sets.train_file == "a.txt"
    assert dataclasses.asdict(sets)["test_file"] == source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("no", "no"), ("yes", "yes"), ("true", True), ("False", False), ("~", None)),
        *(("010", 10), ("0o17", 15), ("0x1F", 31), ("1:30", "1:30")),
        *(("1e3", 1e3), ("1e-3", 1e-3), (".5", 0.5), ("-.inf", float("-inf"))),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text: str, expected: Any, tmp_path: Path) -> None:
    """`dvc exp run -S` writes "no" without its quotes, and 0.001 as 1e-3."""
    path = tmp_path / "params.yaml"
    path.write_text(f"seed: {text}\n", encoding="utf-8")
    value = read_values(path)["seed"]
    assert (type(value), value) == (type(expected), expected)


def test_an_alias_stands_for_its_value(write_params: Write) -> None:
    """`yaml.safe_dump` writes them for a list that is used twice."""
    names = ["star", "flow_grpo"]
    path = write_params({**DEFAULT, "runs": {"geneval": names, "ocr": names, "preference": names}})
    assert "*id001" in path.read_text(encoding="utf-8")
    assert load_params(path).runs == {"geneval": names, "ocr": names, "preference": names}


def test_a_method_puts_its_keys_in_place_of_the_allocation(write_params: Write) -> None:
    wide = {"lam": 9, "temporal": "joint", "clause_wise": True, "clause_maps": "own"}
    params = load_params(write_params(changed(DEFAULT, "methods.wide", wide)))
    assert params.with_method("wide").allocation == dataclasses.replace(params.allocation, **wide)
    assert isinstance(params.methods["wide"]["lam"], float)
    other = params.with_changes({"algorithm": "nft", "anchor_to": "base"})
    assert (other.train.algorithm, other.forward.anchor_to) == ("nft", "base")
    with pytest.raises(StarError, match="no method 'ppo'.*known: star, flow_grpo, wide"):
        params.with_method("ppo")


def test_the_study_lists_its_runs_by_task_method_and_seed(write_params: Write) -> None:
    awm = {"algorithm": "awm", "updates_per_epoch": 1, "learning_rate": 1e-5}
    methods = {"flow_grpo": {"source": "uniform"}, "shuffled": {"source": "shuffled"}, "star": {}}
    study = DEFAULT["study"] | {"tasks": ["ocr"], "seeds": 2, "aim": "star"}
    study |= {"methods": {**methods, "awm": awm}}
    params = load_params(write_params(changed(DEFAULT, "study", study)))
    runs = params.study.runs()
    shared = [f"ocr-{name}-{seed}-0.0015" for name in methods for seed in (0, 1)]
    assert [run.name for run in runs] == [*shared, "ocr-awm-0-1e-05", "ocr-awm-1-1e-05"]
    assert all(float(run.name.split("-", 3)[3]) == run.rate for run in runs)
    rates = [params.of_study(name).train.learning_rate for name in ("star", "awm")]
    assert rates == [1.5e-3, 1e-5]


def test_fingerprint_is_of_the_sections_it_is_given(write_params: Write) -> None:
    params = load_params(ROOT / "params.yaml")
    other = load_params(write_params(changed(DEFAULT, "report.title", "Another")))
    assert fingerprint(params.report) != fingerprint(other.report)
    assert fingerprint(params.train, params.model) == fingerprint(other.train, other.model)
    text = json.dumps([DEFAULT["model"], 7], sort_keys=True)
    assert fingerprint(params.model, 7) == hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_wrong_value_is_refused_by_name(key: str, value: Any) -> None:
    values = changed(DEFAULT, "prompts.ocr.train_file", SOURCE)
    message = refused(changed(values, key, value))
    assert key in message or key.rpartition(".")[2] in message


REQUIRED = [
    key for key in all_keys_of(DEFAULT) if not key.startswith(("study.methods.", "methods."))
]


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key_is_refused_by_name(key: str) -> None:
    assert refused(changed(DEFAULT, key)).startswith(f"{key} is missing; give ")


@pytest.mark.parametrize(
    "key", ["methods.star", "study.methods.flow_grpo", "study.methods.star_clauses"]
)
def test_missing_method_is_refused_by_name(key: str) -> None:
    section, _, name = key.rpartition(".")
    message = refused(changed(DEFAULT, key))
    assert section in message and repr(name) in message


SECTIONS = [".".join(path) for path, key in all_keys(Params).items() if key.names]


@pytest.mark.parametrize("section", [name for name in SECTIONS if not name.endswith("methods")])
def test_unknown_key_is_refused_by_name(section: str) -> None:
    section = section.replace(ANY_NAME, "star")
    values = changed(DEFAULT, "methods.star.encoders", {"clip": 1, "t5": 1})
    values = changed(values, "study.methods.star.encoders", {"clip": 1, "t5": 1})
    for task in ("geneval", "ocr", "preference"):
        for name in ("train_file", "test_file"):
            values = changed(values, f"prompts.{task}.{name}", SOURCE)
    message = refused(changed(values, f"{section}.surprise".lstrip("."), 1))
    assert message.startswith(f"{section or 'top level'}: unknown key 'surprise'; known: ")


def test_every_key_and_section_is_described() -> None:
    assert all(len(key.description) > 10 for key in all_keys(Params).values())


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"rollout.sampler": "cps", "rollout.noise_level": 1.2}, "rollout.noise_level 1.2", "1"),
        ({"rollout.sampler": "cps", "rollout.window": [0, 4]}, "rollout.window", "end <= 3"),
        ({"allocation.encoders": {"clip": 0, "t5": 0}}, "allocation: encoders", "raise one"),
        ({"train.kl_form": "none", "train.kl_beta": 0.1}, "train.kl_beta 0.1", "train.kl_form"),
        ({"train.algorithm": "nft", "train.kl_beta": 0.1}, "train.kl_beta 0.1", "forward.anchor"),
        ({"train.algorithm": "nft", "forward.anchor_to": "ema"}, "forward.anchor_to ema", "old"),
        (
            {"methods.star": {"algorithm": "awm"}, "model.guidance_scale": 4.5},
            *("methods.star: model.guidance_scale 4.5: awm", "set it to 1"),
        ),
        (
            {"methods.odd": {"updates_per_epoch": 3}},
            *("methods.odd: train.updates_per_epoch 3", "use one of 1, 2"),
        ),
        (
            {"methods.odd": {"kl_beta": 0.04, "kl_form": "none"}},
            *("methods.odd: train.kl_beta 0.04", "published or exact"),
        ),
        (
            {"study.methods.odd": {"prompts_per_epoch": 16}},
            *("study.methods.odd: 256 images an epoch, the others have 128", "leave out"),
        ),
        (
            {"methods.odd": {"algorithm": "nft", "objective": "weighted"}},
            *("methods.odd: objective weighted", "of which nft has none; use local"),
        ),
        (
            {"methods.odd": {"algorithm": "awm", "levels": "steps", "draws": 6}},
            *("methods.odd: forward.draws 6", "5 different levels of rollout.steps"),
        ),
        (
            {"methods.odd": {"algorithm": "awm", "step_weight": "noise"}},
            *("methods.odd: train.step_weight noise", "set it to none with awm"),
        ),
        (
            {"train.trust": "kl_mask", "methods.star": {"algorithm": "awm"}},
            *("methods.star: train.trust kl_mask", "set it to clip with awm"),
        ),
        (
            {"train.algorithm": "awm", "train.zero_advantage": "drop"},
            *("train.zero_advantage drop", "set it to keep with awm"),
        ),
        (
            {"train.reuse_rollout": True},
            *("train.reuse_rollout: of the 2 updates", "train.updates_per_epoch to 1"),
        ),
        (
            {"methods.odd": {"reuse_rollout": True, "algorithm": "nft", "updates_per_epoch": 1}},
            *("methods.odd: train.reuse_rollout: nft", "set it to false"),
        ),
        (
            {
                "methods.odd": {"reuse_rollout": True, "updates_per_epoch": 1},
                **{"model.compile": "inductor", "model.gradient_checkpointing": True},
            },
            *("methods.odd: train.reuse_rollout: blocks", 'or model.compile to "no"'),
        ),
        (
            {"methods.odd": {"source": "guidance", "clause_wise": True}},
            *("methods.odd", "clause_maps to own, or clause_wise to false"),
        ),
        (
            {"methods.odd": {"temporal": "joint", "clause_wise": True}},
            *("methods.odd", "clause_maps to own, or temporal to per_step"),
        ),
        (
            {"study.methods.odd": {"objective": "scalar"}},
            *("study.methods.odd", "weighted or local, or the source uniform"),
        ),
        (
            {"rewards.geneval.detector": "mask2former", "rewards.geneval.path": "models/detector"},
            *("rewards.geneval.color_path", "openai/clip"),
        ),
        (
            {"model.resolution": 128, "evaluate.second_reader": "template"},
            *("evaluate.second_reader template", "model.resolution is 128; use ppocrv6"),
        ),
        ({"model.resolution": 128}, "study.second_reader template", "use ppocrv6"),
        ({"train.group_size": 48}, "rollout.batch 64", "use a batch of 1, 2"),
    ],
)
def test_keys_that_do_not_fit_together_are_named(
    changes: dict[str, Any], key: str, said: str
) -> None:
    values = DEFAULT
    for name, value in changes.items():
        values = changed(values, name, value)
    message = refused(values)
    assert message.startswith(key) and said in message


BOMB = [f"v{i}: &v{i} [{', '.join([f'*v{i - 1}' if i else '0'] * 9)}]\n" for i in range(7)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "top level"),
        ("- a\n- b\n", "top level"),
        ("seed: 0\nseed: 1\n", 'line 2: found duplicate key "seed"'),
        ("train: {epochs: 1, epochs: 2}\n", 'line 1: found duplicate key "epochs"'),
        ("train: [1,\n", "line 2"),
        ("\tseed: 0\n", "line 1"),
        ("seed: !!python/object/apply:os.getcwd []\n", "line 1: could not determine a constructor"),
        ("? [a]\n: 1\n", "top level: key ('a',) is not a text; put it in quotes"),
        ("methods: {1: {}}\n", "methods: key 1 is not a text"),
        ("methods: {null: {}}\n", "methods: key None is not a text"),
        ("seed: \x00\n", "special characters"),
        ("[" * 2000, ""),
        ("a: &x [*x]\n", "a: more than 20 levels"),
        ("a: " + "[" * 30 + "]" * 30, "more than 20 levels"),
        ("".join(BOMB), "100000 values, its aliases written out"),
        *((f"seed: !!{kind}\n", "not a YAML file") for kind in ("bool abc", 'int ""', 'float ""')),
        ('seed: !!timestamp "foo"\n', "not a YAML file of parameters"),
        ("seed: 0x" + "F" * 5000, "seed: a number of more than 100 digits"),
        ("? 0b1" + "0" * 20_000, "a number of more than 100 digits"),
        ("seed: " + "9" * 5000, "not a YAML file of parameters"),
        ("#" * 1_000_001, "larger than 1000000 bytes"),
    ],
)
def test_broken_yaml_is_one_line(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    assert expected in refused(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("report.title", "a\0b", "'a\\x00b' has NUL"),
        ("report.title", "a \ud83d", "'a \\ud83d' has half a surrogate pair"),
        ("prompts.ocr.train_file", "a\udc00.txt", "half a surrogate pair"),
        ("methods", {"a\0": {"lam": 1}}, "'a\\x00' has NUL"),
        ("model.path", "a/" + "x" * 256, "255 bytes"),
        ("prompts.ocr.test_file", "é" * 128, "255 bytes"),
        ("model.prompt_cache", "x" * 256 + "/a", "255 bytes"),
    ],
)
def test_texts_that_no_file_can_hold(key: str, value: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(changed(DEFAULT, key, value)))  # PyYAML would drop some characters
    message = refused(path)
    assert message.startswith(f"{key}: ") and said in message


@pytest.mark.parametrize(
    "value", ["x" * 900_000, ["x" * 1000] * 500, {"x" * 1000: 1}, 10**99, {"a\nb": {"lam": "x"}}]
)
@pytest.mark.parametrize(
    "key", ["report.title", "methods", "model.revision", "allocation.blocks", "seed"]
)
def test_messages_are_short(key: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(changed(DEFAULT, key, value)))
    assert key in refused(path)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"report: \xff\n")
    assert "utf-8" in refused(tmp_path / "latin.yaml")


def mutations() -> Iterator[tuple[str, str, str, str]]:
    """Text of a wrong file, the key that its message names, the value it shows, and what it says
    is allowed."""

    def text(key: str, *value: Any) -> str:
        return json.dumps(changed(DEFAULT, key, *value))

    for section in (
        "",
        "model.",
        "prompts.",
        "prompts.ocr.",
        "rollout.",
        "train.",
        "methods.star.",
    ):
        yield text(f"{section}surprise", 1), section.rstrip("."), "'surprise'", "known: "
    renamed = json.dumps(DEFAULT).replace("weight_decay", "weight_deca", 1)
    yield renamed, "train", "'weight_deca'", "did you mean 'weight_decay'?"
    for key in ("seed", "model.path", "train", "rollout.window", "study.aim", "core.weights"):
        yield text(key), key, "is missing", "give "
    half = {"url": SOURCE["url"]}
    yield text("prompts.ocr.test_file", half), "prompts.ocr.test_file.sha256", "is missing", "64"
    for key in ("seed", "model.resolution", "train.epochs", "evaluate.batch", "study.seeds"):
        for value in ("8", None, [8], True):
            yield text(key, value), key, repr(value), "a whole number"
        yield text(key, -1), key, "-1", "at least "
        yield text(key, 10**90), key, "10000", "at most "
    for key, one in (
        ("model.precision", "auto, no, bf16, fp16"),
        ("rollout.sampler", "flow_sde, dance, cps"),
        ("allocation.source", "attention, uniform, shuffled"),
        ("train.kl_form", "published, exact, none"),
        ("prompts.world", "miniature, coco"),
    ):
        yield text(key, "surprise"), key, "'surprise'", f"one of {one}"
    for key in ("model.guidance_scale", "train.learning_rate", "rewards.timeout", "allocation.lam"):
        yield text(key, float("nan")).replace("NaN", ".nan"), key, "nan", "a number, "
        yield text(key, float("inf")).replace("Infinity", ".inf"), key, "inf", "at most "
        yield text(key, True), key, "True", "a number, "
    for key, value, shown, allowed in (
        ("rollout.batch", 7, "7", "use one of 1, 2, 4"),
        ("train.updates_per_epoch", 3, "3", "use one of 1, 2"),
        ("rollout.window", [3, 1], "[3, 1]", "must be 0 <= first < end"),
        ("rollout.window", [0, 8], "[0, 8]", "end <= 4"),
        ("train.ema_every", 41, "41", "more than the training's 24 updates"),
        ("rewards.geneval.revision", "abc", "'abc'", "set null"),
        ("prompts.world", "coco", "coco", "use mask2former"),
        ("study.aim", "nobody", "'nobody'", "one of study.methods"),
        ("study.aim", "awm", "'awm'", "a method with maps"),
        ("runs.ocr", ["nobody"], "'nobody'", "known: star, flow_grpo"),
        ("allocation.blocks", "some", "'some'", "all, or a list"),
        ("allocation.blocks", [], "[]", "at least 1 long"),
        ("allocation.blocks", {"literal['all']": 1}, "{", "all, or a list"),
        ("model.prompt_cache", 3, "3", "null keeps both in memory"),
        ("model.revision", "a b", "'a b'", "commit"),
        ("model.path", " x", "' x'", "a path or hub id"),
        ("methods", {"Bad Name": {}}, "'Bad Name'", "lower-case letters, digits and _"),
        ("report.title", "x" * 201, "xxx...xxx", "at most 200 long"),
        ("model.tf32", "yes", "'yes'", "true or false"),
    ):
        yield text(key, value), key, shown, allowed
    models = {"detector": "mask2former", "path": None}
    geneval = DEFAULT["rewards"]["geneval"] | models
    yield text("rewards.geneval", geneval), "rewards.geneval.path", "mask2former", "hub id"
    yield text("methods.star.objective", "scalar"), "methods.star", "scalar", "weighted or local"


def test_each_of_many_mistakes_is_refused_before_torch_and_in_three_seconds(tmp_path: Path) -> None:
    cases = list(mutations())
    assert len(cases) >= 75
    for index, (text, *_) in enumerate(cases):
        (tmp_path / f"{index}.yaml").write_text(text)
    program = (
        "import json, sys, time; from pathlib import Path\n"
        "from star.system.errors import StarError; from star.config.reading import load_params\n"
        "before = 0\n"  # of the processor, which the tests share, since the start
        f"for index in range({len(cases)}):\n"
        "    try: load_params(Path(sys.argv[1], f'{index}.yaml')); said = 'accepted'\n"
        "    except StarError as error: said = str(error)\n"
        "    now = time.process_time()\n"
        "    print(json.dumps([said, now - before])); before = now\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    for (_, key, shown, allowed), line in zip(cases, run.stdout.splitlines(), strict=True):
        message, seconds = json.loads(line)
        assert key in message and shown in message and allowed in message, (key, shown, message)
        assert seconds < 3 and "\n" not in message


# ---------------------------------------------------------------- anything at all


@settings(max_examples=40, deadline=None)
@given(
    key=st.sampled_from(list(all_keys_of(DEFAULT))),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=5,
    ),
)
def test_any_value_is_either_accepted_or_refused_in_one_line(
    key: str, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "params.yaml"
    text = yaml.safe_dump(changed(DEFAULT, key, value), allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    accepted_or_refused(path)


def accepted_or_refused(path: Path) -> None:
    try:
        assert isinstance(load_params(path), Params)
    except StarError:
        refused(path)


LINES = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
MARKS = [*"{}[]:,#&*!|>?-'\"%@`~ \n\t\0\r", "&a ", "*a", "<<: ", "---\n", "? ", "0x", "010", "1:30"]
MARKS += [".nan", "\\ud83d", "\ufeff", "null", "- "]
MARKS += [f"!!{kind} " for kind in ("int", "bool", "float", "binary", "set", "timestamp", "omap")]
PIECES = st.sampled_from(MARKS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len("".join(LINES))), st.integers(0, 12), PIECES), max_size=4
    ),
    moves=st.lists(st.tuples(st.integers(0, len(LINES) - 1), st.integers(0, 2)), max_size=2),
)
def test_any_edit_of_the_text_is_read_or_refused(
    edits: list[tuple[int, int, str]],
    moves: list[tuple[int, int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    lines = list(LINES)
    for index, times in moves:
        lines[index] = LINES[index] * times
    text = "".join(lines)
    for place, length, piece in edits:
        text = text[:place] + piece + text[place + length :]
    path = tmp_path_factory.mktemp("edit") / "params.yaml"
    path.write_text(text, encoding="utf-8")
    accepted_or_refused(path)
