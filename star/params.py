"""`params.yaml` as frozen dataclasses, checked against `star/params.schema.yaml` before anything expensive.

The schema is the one place that knows types and ranges; this module adds what one key cannot say alone: sums that must
divide and names that must exist.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from star.errors import StarError

TASKS = ("geneval", "ocr", "preference")
TEMPLATE_SIDE = 64  # pixels, the only pictures that the second reader `template` reads
LARGEST = 1_000_000  # bytes of a parameter file
LONGEST_NAME = 255  # bytes of a file's name, on Linux
MOST_DIGITS = 100
MOST_VALUES = 100_000  # of a parameter file, its aliases written out
SHOWN = 80  # characters of a value in a message
STUDY_REFERENCES = ("flow_grpo", "shuffled")  # methods with which the study compares the others


@dataclass(frozen=True)
class ModelParams:
    path: str
    revision: str | None
    resolution: int
    t5_tokens: int
    precision: str
    guidance_scale: float
    lora_rank: int
    lora_alpha: int
    gradient_checkpointing: bool
    compile: str
    tf32: bool
    vae_slicing: bool
    prompt_cache: str | None


@dataclass(frozen=True)
class PromptSource:
    """A prompt file by URL; `star.prompts.fetch` says what becomes of it."""

    url: str
    sha256: str | None


@dataclass(frozen=True)
class PromptSetParams:
    train: int
    test: int
    train_file: str | PromptSource | None
    test_file: str | PromptSource | None


@dataclass(frozen=True)
class PromptsParams:
    world: str
    geneval: PromptSetParams
    ocr: PromptSetParams
    preference: PromptSetParams


@dataclass(frozen=True)
class CoreParams:
    weights: dict[str, float]


@dataclass(frozen=True)
class RolloutParams:
    steps: int
    sampler: str
    noise_level: float
    window: list[int]
    slide_every: int
    same_latent: bool
    batch: int


@dataclass(frozen=True)
class AllocationParams:
    source: str
    objective: str
    clause_wise: bool
    clause_maps: str
    lam: float
    blocks: str | list[int]
    encoders: dict[str, float]
    normalise_tokens: bool
    smoothing: float
    temporal: str

    @property
    def uses_maps(self) -> bool:
        """Whether attention decides anything; strength 0 is Flow-GRPO, bit for bit."""
        return self.source != "uniform" and self.lam > 0


@dataclass(frozen=True)
class TrainParams:
    epochs: int
    prompts_per_epoch: int
    group_size: int
    updates_per_epoch: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    clip_range: float
    normalise_ratio: bool
    advantage_clip: float
    kl_beta: float
    kl_form: str
    ema_decay: float
    ema_every: int
    save_every: int
    keep_states: int
    skip_updates: int
    sample_every: int
    tracker: str


@dataclass(frozen=True)
class GenevalParams:
    detector: str
    path: str | None
    revision: str | None
    color_path: str | None
    color_revision: str | None
    batch: int
    soft: str
    score_threshold: float
    counting_threshold: float
    max_per_class: int


@dataclass(frozen=True)
class OcrParams:
    workers: int
    substring: bool
    read_side: int


@dataclass(frozen=True)
class PreferenceParams:
    path: str
    revision: str | None
    scale: float
    precision: str


@dataclass(frozen=True)
class RewardsParams:
    timeout: float
    geneval: GenevalParams
    ocr: OcrParams
    preference: PreferenceParams


@dataclass(frozen=True)
class EvaluateParams:
    steps: int
    images_per_prompt: dict[str, int]
    batch: int
    bootstrap: int
    second_reader: str


@dataclass(frozen=True)
class ReportParams:
    title: str
    pictures: int


@dataclass(frozen=True)
class StudyRun:
    """One run of the study."""

    task: str
    method: str
    seed: int
    rate: float

    @property
    def name(self) -> str:
        """Stem of its file; the rate as Python writes it, which reads back as the same number."""
        return f"{self.task}-{self.method}-{self.seed}-{self.rate!r}"


@dataclass(frozen=True)
class StudyParams:
    tasks: list[str]
    aim: str
    seeds: int
    epochs: int
    evaluate_every: int
    learning_rate: float
    other_rates: list[float]
    rate_seeds: int
    second_reader: str
    methods: dict[str, dict[str, Any]]

    @property
    def rates(self) -> list[float]:
        """The shared rate, then the others."""
        return [float(rate) for rate in (self.learning_rate, *self.other_rates)]

    def runs(self) -> list[StudyRun]:
        """Every run: `seeds` of each method at the shared rate, `rate_seeds` at each other one."""
        return [
            StudyRun(task, method, seed, rate)
            for task in self.tasks
            for method in self.methods
            for rate in self.rates
            for seed in range(self.seeds if rate == self.learning_rate else self.rate_seeds)
        ]


@dataclass(frozen=True)
class Params:
    seed: int
    runs: dict[str, list[str]]
    model: ModelParams
    prompts: PromptsParams
    core: CoreParams
    rollout: RolloutParams
    allocation: AllocationParams
    methods: dict[str, dict[str, Any]]
    train: TrainParams
    rewards: RewardsParams
    evaluate: EvaluateParams
    report: ReportParams
    study: StudyParams

    def method(self, name: str) -> AllocationParams:
        """The section `allocation` with what the method ``name`` puts in its place.

        Raises:
            StarError: no such method.
        """
        if name not in self.methods:
            raise StarError(f"no method {name!r} under `methods` in the parameters; known: {', '.join(self.methods)}")
        return dataclasses.replace(self.allocation, **self.methods[name])

    @property
    def images_per_epoch(self) -> int:
        return self.train.prompts_per_epoch * self.train.group_size


def load_params(path: Path) -> Params:
    """Read, check and type a parameter file.

    Raises:
        StarError: unreadable file, YAML error, unknown or missing key, wrong type, value out of range, or sums that do
            not divide; the message names the key, its value and what is allowed.
    """
    values = read_values(path)
    check_schema(values, str(path))
    params = _build(Params, values)
    _check_consistency(params, str(path))
    return params


def read_values(path: Path) -> Any:
    """The unchecked content of a parameter file, as YAML 1.2 reads it.

    Raises:
        StarError: a file that cannot be read or is larger than `LARGEST`, broken YAML, a key twice, an alias
            for what it is in.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise StarError(f"{path}: larger than {LARGEST} bytes; give a parameter file")
        return yaml.load(content.decode("utf-8"), Loader=_Loader)
    except StarError:
        raise
    except Exception as error:  # the library also raises IndexError, KeyError, AttributeError for tags that do not fit
        raise StarError(f"{path}: not a YAML file of parameters ({_cut(' '.join(str(error).split()), 300)})") from error


def check_schema(values: Any, where: str) -> None:
    """Raise `StarError` for the first key that the schema refuses."""
    import jsonschema

    _check_texts(values, where)
    validator = jsonschema.Draft202012Validator(schema())
    error = jsonschema.exceptions.best_match(validator.iter_errors(values))
    if error is not None:
        raise StarError(f"{where}: {_dotted(error.absolute_path)}: {_refusal(error)}")
    for key, value in _leaves(values):
        if isinstance(value, float) and not math.isfinite(value):  # compares as inside any range
            raise StarError(f"{where}: {_dotted(key)}: {value} is not a finite number; {_description(key)}")


@functools.cache
def schema() -> dict:
    """The JSON schema of `params.yaml`, read once; not to be changed."""
    return yaml.safe_load(resources.files("star").joinpath("params.schema.yaml").read_text(encoding="utf-8"))


def fingerprint(*sections: Any) -> str:
    """Sixteen hex digits that change when any of the given parameter sections changes."""
    plain = [dataclasses.asdict(s) if dataclasses.is_dataclass(s) and not isinstance(s, type) else s for s in sections]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values, as DVC reads them, where PyYAML has those of 1.1; keys are texts and come once."""

    def compose_document(self) -> yaml.Node | None:
        node = super().compose_document()
        if node is not None and _written_out(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES} values once its aliases are written out")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            line, key = key_node.start_mark.line + 1, self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"line {line}: key {_shown(key)} is not a text; put it in quotes")
            if key in seen:
                raise yaml.YAMLError(f"line {line}: key {_shown(key)} appears twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        return int(self._digits(node), {"0b": 2, "0o": 8, "0x": 16}.get(node.value.lstrip("+-")[:2], 10))

    def construct_number(self, node: yaml.ScalarNode) -> float:
        digits = self._digits(node).lower()
        return float(digits.replace(".inf", "inf").replace(".nan", "nan"))

    def _digits(self, node: yaml.ScalarNode) -> str:
        if len(node.value) > MOST_DIGITS:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: {_shown(node.value)} has more than {MOST_DIGITS} digits")
        return self.construct_scalar(node).replace("_", "")


def _written_out(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Values below a node, counted as if every alias were written out: a few lines of aliases can stand for billions.

    Args:
        known: the counts so far; 0 while a node is being counted.
    """
    if node not in known:
        known[node] = 0
        pairs = isinstance(node, yaml.MappingNode)
        inner = [part for pair in node.value for part in pair] if pairs else node.value
        known[node] = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(_written_out(part, known) for part in inner))
    if not known[node]:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: an alias for what it is in")
    return known[node]


# PyYAML takes no, 010, 1:30 and 1e-3 for false, 8, 90 and a text. `dvc exp run -S` drops the quotes of "no".
_PLAIN = {
    "bool": ("tTfF", "true|True|TRUE|false|False|FALSE"),
    "int": ("-+0123456789", "[-+]?(0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)"),
    "float": (
        "-+.0123456789",
        r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?"
        r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] not in _PLAIN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, (_first, _pattern) in _PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^({_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)


def _leaves(values: Any, where: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Everything in a parsed YAML value that holds nothing else, with the path to it."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _leaves(value, (*where, key))
    else:
        yield where, values


def _check_texts(values: Any, where: str) -> None:
    """Refuse texts, keys among them, that no file and no path can hold."""
    for path, value in _leaves(values):
        for text in (*path, value):
            if isinstance(text, str) and ("\0" in text or text != text.encode("utf-8", "ignore").decode("utf-8")):
                character = "NUL" if "\0" in text else "half a surrogate pair"
                raise StarError(
                    f"{where}: {_dotted(path)}: {_shown(text)} has {character} in it; remove that character"
                )


def _refusal(error: Any) -> str:
    """What is wrong and what is allowed, of an error of jsonschema, whose own messages quote whole values."""
    if error.validator == "required":
        return error.message
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        key = next(key for key in error.instance if key not in known)
        near = difflib.get_close_matches(key[:SHOWN], known, n=1)
        return (
            f"unknown key {_shown(key)}; "
            + (f"did you mean {near[0]!r}? " if near else "")
            + f"known: {', '.join(known)}"
        )
    shown, message = _shown(error.instance), error.message
    if error.validator in ("oneOf", "pattern", "const"):  # these say a regular expression, or nothing
        message = f"{shown} is not allowed"
    allowed = _description(error.absolute_path)
    if "propertyNames" in error.absolute_schema_path:
        message, allowed = f"the name {message}", schema()["$defs"]["method_name"]["description"]
    return f"{message.replace(repr(error.instance), shown, 1)}; {allowed}"


def _description(path: Iterable[str | int]) -> str:
    """What the schema says of a key, or of the nearest one above it of which it says something."""
    node, said = schema(), schema()["description"]
    for part in path:
        inner = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        node = {**schema()["$defs"].get(inner.get("$ref", "").removeprefix("#/$defs/"), {}), **inner}
        said = node.get("description", said)
    return said


def _dotted(path: Iterable[str | int]) -> str:
    parts = [str(part) if re.fullmatch(r"[\w-]{1,64}", str(part)) else _shown(part) for part in path]
    return ".".join(parts) or "top level"


def _shown(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str, most: int = SHOWN) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def _build(kind: Any, values: Any) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: _build(hints[f.name], values[f.name]) for f in dataclasses.fields(kind)})
    if isinstance(values, dict) and PromptSource in get_args(kind):
        return _build(PromptSource, values)
    if kind in (int, float):  # the schema counts 8.0 as an integer and 1 as a number
        return kind(values)
    if kind == dict[str, dict[str, Any]]:  # sections that stand in for keys of `allocation`
        hints = get_type_hints(AllocationParams)
        return {name: {key: _build(hints[key], v) for key, v in section.items()} for name, section in values.items()}
    return values


def _check_consistency(params: Params, where: str) -> None:
    images, batch, group = params.images_per_epoch, params.rollout.batch, params.train.group_size
    if images % batch:
        raise StarError(
            f"{where}: rollout.batch {batch} does not divide train.prompts_per_epoch x train.group_size = {images}; "
            f"use one of {_fitting_batches(images, group)}"
        )
    if batch % group and group % batch:
        raise StarError(
            f"{where}: rollout.batch {batch} and train.group_size {group}: one must divide the other; "
            f"use a batch of {_fitting_batches(images, group)}"
        )
    if (images // batch) % params.train.updates_per_epoch:
        raise StarError(
            f"{where}: train.updates_per_epoch {params.train.updates_per_epoch} does not divide the {images // batch} "
            f"rollout batches of an epoch; use one of {_listed(_divisors(images // batch))}, or change rollout.batch"
        )
    first, end = params.rollout.window
    if not 0 <= first < end <= params.rollout.steps - 1:
        raise StarError(
            f"{where}: rollout.window [{first}, {end}] must be 0 <= first < end <= rollout.steps - 1 = "
            f"{params.rollout.steps - 1} (the last step is never stochastic: its log-prob explodes)"
        )
    if params.rollout.sampler == "cps" and params.rollout.noise_level > 1:
        raise StarError(
            f"{where}: rollout.noise_level {params.rollout.noise_level}: the sampler cps replaces a share of the "
            "noise; use at most 1"
        )
    if params.train.kl_form == "none" and params.train.kl_beta > 0:
        raise StarError(f"{where}: train.kl_beta {params.train.kl_beta} wants a train.kl_form: published or exact")
    for key, path in _paths(params):
        long = next((part for part in path.split("/") if len(part.encode()) > LONGEST_NAME), None)
        if long is not None:
            raise StarError(f"{where}: {key}: {_shown(long)} is longer than {LONGEST_NAME} bytes; give a shorter name")
    _check_geneval(params.rewards.geneval, params.prompts.world, where)
    _check_second_readers(params, where)
    for key, changes in (
        ("allocation", {}),
        *((f"methods.{name}", section) for name, section in params.methods.items()),
        *((f"study.methods.{name}", section) for name, section in params.study.methods.items()),
    ):
        method = dataclasses.replace(params.allocation, **changes)
        if not any(method.encoders.values()):
            raise StarError(f"{where}: {key}: encoders are all 0, which leaves no core token; raise one")
        if method.source == "guidance" and method.clause_wise and method.clause_maps == "share":
            raise StarError(
                f"{where}: {key}: with source guidance every clause has one map, so clause_maps share leaves none; "
                "set clause_maps to own, or clause_wise to false"
            )
        if method.objective == "scalar" and method.source != "uniform":
            raise StarError(
                f"{where}: {key}: the scalar objective has no place for maps of source {method.source}; "
                "use weighted or local, or the source uniform"
            )
    _check_study(params.study, where)
    for task, methods in params.runs.items():
        for name in methods:
            if name not in params.methods:
                known = ", ".join(params.methods)
                raise StarError(f"{where}: runs.{task}: no method {name!r} under `methods`; known: {known}")


def _paths(params: Params) -> Iterator[tuple[str, str]]:
    """The keys that may name a file or folder, and their values."""
    geneval = params.rewards.geneval
    named: dict[str, str | PromptSource | None] = {
        "model.path": params.model.path,
        "model.prompt_cache": params.model.prompt_cache,
        "rewards.geneval.path": geneval.path,
        "rewards.geneval.color_path": geneval.color_path,
        "rewards.preference.path": params.rewards.preference.path,
    }
    for task in TASKS:
        sets: PromptSetParams = getattr(params.prompts, task)
        named |= {f"prompts.{task}.train_file": sets.train_file, f"prompts.{task}.test_file": sets.test_file}
    return ((key, value) for key, value in named.items() if isinstance(value, str))


def _check_geneval(geneval: GenevalParams, world: str, where: str) -> None:
    key = "rewards.geneval"
    if geneval.detector == "mask2former":
        for name, example in (
            ("path", "facebook/mask2former-swin-small-coco-instance"),
            ("color_path", "openai/clip-vit-large-patch14"),
        ):
            if getattr(geneval, name) is None:
                raise StarError(f"{where}: {key}.{name}: mask2former wants a directory or hub id, e.g. {example}")
        return
    for name in ("path", "revision", "color_path", "color_revision"):
        value = getattr(geneval, name)
        if value is not None:
            raise StarError(
                f"{where}: {key}.{name} {value!r}: the detector exact opens no model; set null, or use "
                f"{key}.detector mask2former"
            )
    if world != "miniature":
        raise StarError(
            f"{where}: {key}.detector exact knows only the classes of prompts.world miniature, not of {world}; "
            "use mask2former"
        )


def _check_second_readers(params: Params, where: str) -> None:
    for section, reader in (("evaluate", params.evaluate.second_reader), ("study", params.study.second_reader)):
        if reader == "template" and params.model.resolution != TEMPLATE_SIDE:
            raise StarError(
                f"{where}: {section}.second_reader template reads the miniature's signs of {TEMPLATE_SIDE} pixels, "
                f"model.resolution is {params.model.resolution}; use ppocrv6"
            )


def _fitting_batches(images: int, group: int) -> str:
    return _listed([n for n in _divisors(images) if n % group == 0 or group % n == 0])


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _check_study(study: StudyParams, where: str) -> None:
    for name in STUDY_REFERENCES:
        if name not in study.methods:
            raise StarError(f"{where}: study.methods has no {name!r}: the study compares with flow_grpo and shuffled")
    if study.aim not in study.methods or study.aim in STUDY_REFERENCES:
        raise StarError(
            f"{where}: study.aim {study.aim!r} is not one of study.methods besides {' and '.join(STUDY_REFERENCES)}"
        )
    if study.learning_rate in study.other_rates:
        raise StarError(f"{where}: study.other_rates has study.learning_rate {study.learning_rate:g} again")
    if study.rate_seeds > study.seeds:
        raise StarError(
            f"{where}: study.rate_seeds {study.rate_seeds} is more than study.seeds {study.seeds}: rates are compared "
            "over the same seeds"
        )
