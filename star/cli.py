"""``star <stage>``: parses, calls, prints. Each stage works alone, with files in and files out.

`STAGES`, at the end, has them all with their options. Heavy libraries are imported inside the
stages that need them, so that ``star prompts`` and ``--help`` answer immediately."""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star.config.params import TASKS, Params, StudyRun
from star.config.reading import load_params
from star.system.errors import StarError, disk_error
from star.system.gpus import claim_gpus
from star.system.launch import refuse_lone_process
from star.system.runtime import escape_output, keep_freed_memory, quick_imports, stay_offline

if TYPE_CHECKING:
    from star.training.trainer import LogLine


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage and return the exit status.

    It is 0, or another one after a one-line error on standard error: 1, or 75 if the stage was
    asked to stop and its work is saved.
    """
    escape_output()
    options = _parser().parse_args(arguments)
    stay_offline()
    keep_freed_memory()
    try:
        if options.stage in COMPUTING:
            refuse_lone_process(os.environ)
            claim_gpus(1)
        options.run(options)
    except Exception as error:
        known = error if isinstance(error, StarError) else disk_error(error)
        if known is None:
            raise
        print(f"star {options.stage}: error: {' '.join(str(known).split())}", file=sys.stderr)
        return known.status
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="star", description="SpatioTemporal Adaptive Reward allocation for SD3-family models."
    )
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, (run, summary, *options) in STAGES.items():
        stage = stages.add_parser(name, help=summary, description=summary)
        stage.set_defaults(run=run)
        for option, settings in options:
            stage.add_argument(option, **settings)
    return parser


# ------------------------------------------------------------------------------------ the stages


def _plan(options: argparse.Namespace) -> None:
    from star.plan import make_plan
    from star.plan.result import as_json
    from star.plan.table import show

    plan = make_plan(
        load_params(options.params), options.task, options.processes, options.device, options.tflops
    )
    print(json.dumps(as_json(plan), indent=1) if options.json else show(plan))


def _doctor(options: argparse.Namespace) -> None:
    from star.doctor import short

    if options.output and not options.full:
        raise StarError("--output goes with --full")
    findings = short.examine(load_params(options.params))
    if options.full:
        claim_gpus(1)
        with quick_imports():
            from star.doctor import full
        findings = full.examine(options.params, options.output)
    wrong = []
    for finding in findings:
        print(finding, flush=True)
        wrong += [finding.what] if finding.mend and finding.needed else []
    if wrong:
        named = ", ".join(dict.fromkeys(wrong))
        raise StarError(f"{options.params} cannot run here yet: {named} (MEND above)")


def _prompts(options: argparse.Namespace) -> None:
    from star.prompts.prepare import prepare
    from star.prompts.records import write_records

    params = load_params(options.params)
    train, test = prepare(options.task, params.prompts, params.seed)
    write_records(options.train, train)
    write_records(options.test, test)
    trained = f"{len(train)} training prompts in {options.train}"
    print(f"{options.task}: {trained}, {len(test)} test prompts in {options.test}")


def _core(options: argparse.Namespace) -> None:
    from star.prompts.core_content import with_core
    from star.prompts.records import read_records, write_records

    records = with_core(read_records(options.prompts))
    write_records(options.output, records)
    spans = sum(len(record.core or ()) for record in records)
    print(f"{spans} core spans of {len(records)} prompts in {options.output}")


def _train(options: argparse.Namespace) -> None:
    from star.prompts.records import read_records

    whole = load_params(options.params)
    records, held_out = read_records(options.prompts), read_records(options.held_out)
    params = whole.with_method(options.method)  # refused before the slow imports
    with quick_imports():
        from star.training.loop import train
        from star.training.resume import held_out_identity, state_folder, training_identity

    task, method, tested = options.task, options.method, options.held_out
    more = held_out_identity(params, tested)
    identity = training_identity(params, task, method, options.prompts, **more)
    work = state_folder(options.state, f"{task}-{method}", identity)
    announce = partial(_announce, whole, method)
    train(params, task, method, records, held_out, work, options.output, identity, announce)
    print(f"adapter, log, samples and maps in {options.output}")


def _announce(params: Params, method: str, line: "LogLine") -> None:
    """Say how long all of `runs` takes, one job after the other, by the first epoch."""
    from star.plan.counts import held_out_images, tested_images

    epoch = sum(line.seconds.values())
    # An image takes as long as one of the rollout, step by step.
    step = line.seconds["rollout"] / line.images / params.rollout.steps

    def training(name: str) -> float:
        its = params.with_method(name)
        return its.train.epochs * epoch + held_out_images(its) * its.rollout.steps * step

    every = [name for names in params.runs.values() for name in names]
    tested = (len(every) + 1) * tested_images(params) * params.evaluate.steps * step
    minutes = (sum(map(training, every)) + tested) / 60
    print(
        f"epoch 1 took {epoch:.1f} s: this training {training(method) / 60:.0f} min; all "
        f"{len(every)} of `runs` with their evaluations about {minutes:.0f} min, shared by the "
        "jobs that run at once",
        flush=True,
    )


def _evaluate(options: argparse.Namespace) -> None:
    from star.prompts.records import read_benchmarks

    params = load_params(options.params)
    # it names a folder
    if not re.fullmatch(rf"base|({'|'.join(TASKS)})-[a-z0-9_]+", options.checkpoint):
        raise StarError(
            f"--checkpoint {options.checkpoint!r}: give base, or a task ({', '.join(TASKS)}) and a "
            "method: ocr-star"
        )
    if (options.adapter is None) != (options.checkpoint == "base"):
        raise StarError("--adapter goes with every checkpoint but `base`")
    read_benchmarks(options.prompts_dir)  # refused before the slow imports
    with quick_imports():
        from star.evaluation.evaluate import evaluate, work_folder

    which = options.checkpoint, options.adapter, options.prompts_dir
    work = work_folder(params, *which, options.state)
    evaluate(params, *which, work, options.output)
    print(f"scores in {options.output / 'scores.json'}")


def _maps(options: argparse.Namespace) -> None:
    params = load_params(options.params)
    allocation = params.with_method(options.method).allocation
    if not allocation.uses_maps:
        flat = "all its maps are 1 (source uniform, or lam 0)"
        raise StarError(f"--method {options.method}: {flat}; give one with maps")
    with quick_imports():
        from star.report.maps import write_maps

    seed = params.seed if options.seed is None else options.seed
    write_maps(params, allocation, options.prompts, options.adapter, seed, options.output)
    print(f"maps in {options.output}")


def _launch(options: argparse.Namespace) -> None:
    from star.system.gpus import check_gpus
    from star.system.launch import launch_command, shared_threads

    stage = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    shape = (options.gpus, options.processes, options.nodes)
    command = launch_command(stage, *shape, os.environ)
    if options.nodes == 1:  # several have SLURM's word
        claim_gpus(max(options.gpus, options.processes))
    check_gpus(options.gpus // options.nodes)
    if command is None:
        sys.exit(main(stage))
    os.execvpe(command[0], command, shared_threads(os.environ, *shape))


def _score(options: argparse.Namespace) -> None:
    from star.prompts.records import read_records

    params, records = load_params(options.params), read_records(options.prompts)
    with quick_imports():
        from star.evaluation.score_folder import score_folder

    score_folder(params, options.task, records, options.images, options.output)
    print((options.output / "metrics.json").read_text(encoding="utf-8"), end="")
    print(f"scores in {options.output / 'scores.json'}")


def _compare(options: argparse.Namespace) -> None:
    from star.report.compare.page import compare_runs

    print(compare_runs(options.runs, options.output))
    if options.output is not None:
        print(f"comparison in {options.output}")


def _report(options: argparse.Namespace) -> None:
    from star.report.page import write_report

    params = load_params(options.params)
    reached = write_report(params, options.params, options.results, options.output)
    print(*reached, sep="\n")
    print(f"report in {options.output}")


def _export(options: argparse.Namespace) -> None:
    with quick_imports():
        from star.report.export import export_adapter

    params = load_params(options.params)
    export_adapter(params, options.params, options.training, options.evaluation, options.output)
    print(f"adapter and card in {options.output}")


def _study_run(options: argparse.Namespace) -> None:
    from star.prompts.records import read_records

    params = load_params(options.params)
    if options.method not in params.study.methods:
        known = ", ".join(params.study.methods)
        raise StarError(
            f"{options.params}: study.methods has no {options.method!r}; known: {known}"
        )
    records, held_out = read_records(options.prompts), read_records(options.held_out)
    with quick_imports():
        from star.study.run import run_study, study_identity
        from star.training.resume import state_folder

    run = StudyRun(options.task, options.method, options.seed, options.rate)
    identity = study_identity(params, run, options.prompts, options.held_out)
    work = state_folder(options.state, run.name, identity)
    run_study(params, run, records, held_out, work, options.output, identity)
    print(f"{options.task} {options.method} seed {options.seed}: {options.output}")


def _study_report(options: argparse.Namespace) -> None:
    from star.study.page import write_study

    write_study(load_params(options.params), options.runs, options.output)
    print(f"study in {options.output}")


def _pretrain(options: argparse.Namespace) -> None:
    with quick_imports():
        from star.pretraining.config import GENERATORS
        from star.pretraining.generator import pretrain
        from star.pretraining.generator_card import write_card

    params = load_params(options.params)
    config = GENERATORS[options.world]
    pretrain(options.output, options.work, config)
    write_card(options.output, options.work, config, params)


def _pretrain_preference(options: argparse.Namespace) -> None:
    with quick_imports():
        from star.pretraining.config import PreferenceConfig
        from star.pretraining.preference import pretrain_preference

    pretrain_preference(options.output, options.work, PreferenceConfig(world=options.world))


# ------------------------------------------------------------- the table of stages and options

Option = tuple[str, dict[str, Any]]  # what argparse's `add_argument` is given


def _option(name: str, summary: str, **settings: Any) -> Option:
    return name, {"help": summary, **settings}


def _path(name: str, summary: str, required: bool = True, **settings: Any) -> Option:
    """Return an option for a path; a shell leaves the ~ of `--output=~/x` to the program."""
    settings = {"metavar": "PATH", "required": required} | settings
    return _option(name, summary, type=lambda text: Path(os.path.expanduser(text)), **settings)


def _state(folder: str, summary: str) -> Option:
    return _path("--state", summary, required=False, default=Path(".star", folder))


def _positive(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    """Return a type of an option that must be finite and above 0."""

    def read(text: str) -> int | float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise ValueError(text)
        return value

    read.__name__ = f"positive {kind.__name__}"  # argparse names it in its message
    return read


COUNT = {"type": _positive(int), "default": 1}
PARAMS = _path("--params", "default: params.yaml", required=False, default=Path("params.yaml"))
TASK = _option("--task", "whose prompts and reward", required=True, choices=TASKS)
TRAINING = _path("--prompts", "training records with core spans")
HELD_OUT = _path("--held-out", "test records")
WORK = _path("--work", "folder of the resume state and the log")
WORLD = _option("--world", "default: plain", choices=("plain", "crowded"), default="plain")
PAGE = _path("--output", "HTML file to write")

COMPUTING = ("train", "evaluate", "maps", "score", "study-run")  # on a GPU where there is one
STAGES: dict[str, Any] = {  # name: what it runs, what it says of itself, its options
    "doctor": (
        _doctor,
        "say what this machine can do and what to mend, for a parameter file",
        PARAMS,
        _option("--full", "train and measure a model with random weights", action="store_true"),
        _path("--output", "with --full: JSON file of all figures to write", required=False),
    ),
    "plan": (
        _plan,
        "say what a parameter file asks for: arithmetic, operations and memory; runs nothing",
        PARAMS,
        _option("--processes", "that train together, a GPU each; default: 1", **COUNT),
        _option("--task", "default: all", nargs="+", choices=TASKS, default=TASKS),
        _option("--device", "default: cuda", choices=("cuda", "cpu"), default="cuda"),
        _option("--tflops", "10^12 operations/s of a device; adds hours", type=_positive(float)),
        _option("--json", "print JSON, sizes in bytes, and no table", action="store_true"),
    ),
    "prompts": (
        _prompts,
        "prepare the training and test prompts of a task",
        *(PARAMS, TASK),
        _path("--train", "training records to write (JSON lines)"),
        _path("--test", "test records to write (JSON lines)"),
    ),
    "core": (
        _core,
        "mark the core content of prompts",
        PARAMS,
        _path("--prompts", "records to read"),
        _path("--output", "records with core spans to write"),
    ),
    "train": (
        _train,
        "train one method on one task",
        *(PARAMS, TASK, TRAINING, HELD_OUT),
        _option("--method", "a section of `methods` in the parameter file", required=True),
        _path("--output", "folder for the adapter, the log, sample grids and maps"),
        _state("state", "folder of resume states"),
    ),
    "evaluate": (
        _evaluate,
        "score one checkpoint on every benchmark",
        PARAMS,
        _option("--checkpoint", "`base` or `task-method`", required=True),
        _path("--prompts-dir", "folder with <task>/test.jsonl"),
        _path("--adapter", "adapter folder of the checkpoint; none for `base`", required=False),
        _path("--output", "folder for scores.json, images.jsonl and images"),
        _state("evaluate", "folder of images sampled so far"),
    ),
    "maps": (
        _maps,
        "draw the allocation maps of prompts, at every denoising step",
        _option("prompts", "to draw an image of each", nargs="+", metavar="PROMPT"),
        PARAMS,
        _path("--adapter", "adapter folder of a training; default: base model", required=False),
        _option("--method", "a section of `methods`; default: star", default="star"),
        _option("--seed", "of the noise; default: the parameters'", type=int),
        _path("--output", "PNG file to write"),
    ),
    "launch": (
        _launch,
        "run a stage in several processes, on this machine or on those of its SLURM job",
        _option("--gpus", "in all, with a process each; default: 0", type=int, default=0),
        _option("--processes", "in all, if more than GPUs; default: 1", **COUNT),
        _option("--nodes", "machines; default: 1", **COUNT),
        _option("arguments", "the stage", nargs=argparse.REMAINDER, metavar="-- STAGE ..."),
    ),
    "score": (
        _score,
        "score a folder of images, of any model, on one benchmark",
        *(PARAMS, TASK),
        _path("--prompts", "test records of the benchmark"),
        _path("--images", "folder of <record id>_<index>.png"),
        _path("--output", "folder for scores.json and images.jsonl"),
    ),
    "compare": (
        _compare,
        "compare runs: a table here, and a page with curves, images and parameters that differ",
        _option(
            "runs", "results/evaluate/<checkpoint> of each", type=Path, nargs="+", metavar="RUN"
        ),
        _path("--output", "HTML file to write", required=False),
    ),
    "report": (
        _report,
        "write the HTML report and the small metrics",
        PARAMS,
        _path("--results", "the run's results folder"),
        PAGE,
    ),
    "export": (
        _export,
        "write a trained adapter with a model card in the hub's form; uploads nothing",
        PARAMS,
        _path("--training", "folder of the training: results/train/<task>-<method>"),
        _path("--evaluation", "folder of its evaluation: results/evaluate/<task>-<method>"),
        _path("--output", "folder to write"),
    ),
    "study-run": (
        _study_run,
        "train one variant of the study from one seed",
        *(PARAMS, TASK, TRAINING, HELD_OUT),
        _option("--method", "a section of `study.methods` in the parameter file", required=True),
        _option("--seed", "of noise, prompts' order and adapter", type=int, required=True),
        _option("--rate", "learning rate", type=_positive(float), required=True),
        _path("--output", "JSON file of the run to write"),
        _state("study", "folder of resume states"),
    ),
    "study-report": (
        _study_report,
        "compare the study's runs: an HTML page and small tables next to it",
        PARAMS,
        _path("--runs", "folder of the runs' JSON files"),
        PAGE,
    ),
    "pretrain": (
        _pretrain,
        "make the miniature base model (hours)",
        *(PARAMS, WORK, WORLD),
        _path("--output", "pipeline directory to write"),
    ),
    "pretrain-preference": (
        _pretrain_preference,
        "make the miniature preference stand-in from nothing",
        *(PARAMS, WORK, WORLD),
        _path("--output", "model directory to write"),
    ),
}


if __name__ == "__main__":
    sys.exit(main())
