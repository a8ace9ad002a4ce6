"""``star <stage>``: parses, calls, prints; no logic. Each stage works alone, with files in and
files out.

Heavy libraries are imported inside the stages that need them, so that ``star prompts`` and
``--help`` answer at once."""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from star.config.params import TASKS, fingerprint, load_params
from star.system.errors import StarError, disk_error
from star.system.runtime import keep_freed_memory, quick_imports, stay_offline


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; returns the exit status: 0, or another one after a one-line error on standard
    error (1; 75 if it was asked to stop and its work is saved)."""
    options = _parser().parse_args(arguments)
    stay_offline()
    keep_freed_memory()
    try:
        options.run(options)
    except StarError as error:
        return _failed(options.stage, str(error), error.status)
    except Exception as error:
        if not (said := disk_error(error)):
            raise
        return _failed(options.stage, str(said), said.status)
    return 0


def _failed(stage: str, message: str, status: int) -> int:
    print(f"star {stage}: error: {' '.join(message.split())}", file=sys.stderr)
    return status


class _Stages:
    """The command line's stages, each with the options that all have."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")

    def add(
        self,
        name: str,
        run: Callable[[argparse.Namespace], None],
        summary: str,
        task: bool = False,
        file: bool = True,
    ) -> argparse.ArgumentParser:
        sub = self._stages.add_parser(name, help=summary, description=summary)
        if file:
            sub.add_argument(
                "--params",
                type=Path,
                default=Path("params.yaml"),
                metavar="FILE",
                help="default: params.yaml",
            )
        if task:
            sub.add_argument("--task", required=True, choices=TASKS)
        sub.set_defaults(run=run)
        return sub


def _path(sub: argparse.ArgumentParser, name: str, summary: str, required: bool = True) -> None:
    sub.add_argument(f"--{name}", type=Path, required=required, metavar="PATH", help=summary)


def _state(
    sub: argparse.ArgumentParser, folder: str, summary: str = "folder of resume states"
) -> None:
    sub.add_argument(
        "--state", type=Path, default=Path(".star") / folder, metavar="PATH", help=summary
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="star", description="SpatioTemporal Adaptive Reward allocation for SD3-family models."
    )
    stages = _Stages(parser)
    _add_run(stages)
    _add_study(stages)
    _add_making_of_models(stages)
    return parser


def _add_run(stages: _Stages) -> None:
    summary = "say what a parameter file asks for: arithmetic, operations and memory; runs nothing"
    sub = stages.add("plan", _plan, summary)
    sub.add_argument(
        "--processes",
        type=_positive(int),
        default=1,
        help="that train together, a GPU each; default: 1",
    )
    sub.add_argument("--task", nargs="+", choices=TASKS, default=TASKS, help="default: all")
    sub.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    sub.add_argument(
        "--tflops",
        type=_positive(float),
        help="10^12 operations/s that a device achieves; adds hours to the plan",
    )
    sub.add_argument(
        "--json", action="store_true", help="print JSON, sizes in bytes, instead of the table"
    )

    sub = stages.add(
        "prompts", _prompts, "prepare the training and test prompts of a task", task=True
    )
    _path(sub, "train", "training records to write (JSON lines)")
    _path(sub, "test", "test records to write (JSON lines)")

    sub = stages.add("core", _core, "mark the core content of prompts")
    _path(sub, "prompts", "records to read")
    _path(sub, "output", "records with core spans to write")

    sub = stages.add("train", _train, "train one method on one task", task=True)
    sub.add_argument("--method", required=True, help="a section of `methods` in the parameter file")
    _path(sub, "prompts", "training records with core spans")
    _path(sub, "output", "folder for the adapter, the log, sample grids and maps")
    _state(sub, "state")

    sub = stages.add("evaluate", _evaluate, "score one checkpoint on every benchmark")
    sub.add_argument("--checkpoint", required=True, help="`base` or `task-method`")
    _path(sub, "prompts-dir", "folder with <task>/test.jsonl")
    _path(sub, "adapter", "adapter folder of the checkpoint; none for `base`", required=False)
    _path(sub, "output", "folder for scores.json, images.jsonl and images")
    _state(sub, "evaluate", "folder of images drawn so far")

    summary = "run a stage in several processes, on this machine or on those of its SLURM job: star launch ... -- STAGE"
    sub = stages.add("launch", _launch, summary, file=False)
    sub.add_argument("--gpus", type=int, default=0, help="in all, with a process each; default: 0")
    sub.add_argument(
        "--processes", type=_positive(int), default=1, help="in all, if more than GPUs; default: 1"
    )
    sub.add_argument("--nodes", type=_positive(int), default=1, help="machines; default: 1")
    sub.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="-- STAGE ...",
        help="the stage and its arguments",
    )

    sub = stages.add(
        "score",
        _score,
        "score a folder of images, drawn by any model, on one benchmark",
        task=True,
    )
    _path(sub, "prompts", "test records of the benchmark")
    _path(sub, "images", "folder of <record id>_<index>.png")
    _path(sub, "output", "folder for scores.json and images.jsonl")

    summary = "compare two or more runs: a table here, and a page with curves, images and parameters that differ"
    sub = stages.add("compare", _compare, summary, file=False)
    folder = "folder of an evaluation, results/evaluate/<checkpoint>, of any results; differences are to the first"
    sub.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=folder)
    _path(sub, "output", "HTML file to write", required=False)

    sub = stages.add("report", _report, "write the HTML report and the small metrics")
    _path(sub, "results", "the run's results folder")
    _path(sub, "output", "HTML file to write")

    sub = stages.add(
        "export",
        _export,
        "write a trained adapter with a model card in the hub's form; uploads nothing",
    )
    _path(sub, "training", "folder of the training: results/train/<task>-<method>")
    _path(sub, "evaluation", "folder of its evaluation: results/evaluate/<task>-<method>")
    _path(sub, "output", "folder to write")


def _add_study(stages: _Stages) -> None:
    sub = stages.add(
        "study-run", _study_run, "train one variant of the study from one seed", task=True
    )
    sub.add_argument(
        "--method", required=True, help="a section of `study.methods` in the parameter file"
    )
    sub.add_argument("--seed", type=int, required=True)
    sub.add_argument("--rate", type=_positive(float), required=True, help="learning rate")
    _path(sub, "prompts", "training records with core spans")
    _path(sub, "held-out", "test records")
    _path(sub, "output", "JSON file of the run to write")
    _state(sub, "study")

    sub = stages.add(
        "study-report",
        _study_report,
        "compare the study's runs: an HTML page and small tables beside it",
    )
    _path(sub, "runs", "folder of the runs' JSON files")
    _path(sub, "output", "HTML file to write; the tables go beside it")


def _add_making_of_models(stages: _Stages) -> None:
    sub = stages.add("pretrain", _pretrain, "make the miniature base model from nothing (hours)")
    _path(sub, "output", "pipeline directory to write")
    _path(sub, "work", "folder of the resume state and the log")

    sub = stages.add(
        "pretrain-preference",
        _pretrain_preference,
        "make the miniature preference stand-in from nothing",
    )
    _path(sub, "output", "model directory to write")
    _path(sub, "work", "folder of the resume state and the log")


def _positive(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    """A type of an option that must be finite and above 0."""

    def read(text: str) -> int | float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise ValueError(text)
        return value

    read.__name__ = f"positive {kind.__name__}"  # argparse names it in its message
    return read


def _plan(options: argparse.Namespace) -> None:
    from star.plan import make_plan
    from star.plan.result import as_json
    from star.plan.table import show

    plan = make_plan(
        load_params(options.params), options.task, options.processes, options.device, options.tflops
    )
    print(json.dumps(as_json(plan), indent=1) if options.json else show(plan))


def _prompts(options: argparse.Namespace) -> None:
    from star.prompts.prepare import prepare
    from star.prompts.records import write_records

    train, test = prepare(options.task, load_params(options.params))
    write_records(options.train, train)
    write_records(options.test, test)
    print(
        f"{options.task}: {len(train)} training prompts in {options.train}, {len(test)} test prompts in {options.test}"
    )


def _core(options: argparse.Namespace) -> None:
    from star.prompts.core_content import extract_core
    from star.prompts.records import read_records, write_records

    records = [dataclasses.replace(r, core=extract_core(r)) for r in read_records(options.prompts)]
    write_records(options.output, records)
    print(
        f"{sum(len(r.core or ()) for r in records)} core spans of {len(records)} prompts in {options.output}"
    )


def _train(options: argparse.Namespace) -> None:
    from star.prompts.records import read_records

    params = load_params(options.params)
    records = read_records(options.prompts)
    allocation = params.method(options.method)  # refused before the slow imports
    with quick_imports():
        from star.training.loop import train
        from star.training.resume import state_folder, training_identity

    identity = training_identity(params, options.task, options.method, allocation, options.prompts)
    work = state_folder(options.state, identity)
    train(params, options.task, options.method, records, work, options.output, identity)
    print(f"adapter, log, samples and maps in {options.output}")


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
        from star.study.run import run_study
        from star.training.resume import state_folder, training_identity

    study, looks = params.study, dataclasses.asdict(params.evaluate)
    looks |= {
        "prompts": hashlib.sha256(options.held_out.read_bytes()).hexdigest(),
        "every": study.evaluate_every,
    }
    changes = {
        "epochs": study.epochs,
        "seed": options.seed,
        "learning_rate": options.rate,
        "looks": looks,
    }
    run = (options.task, options.method)
    identity = training_identity(
        params,
        *run,
        params.allocation,
        options.prompts,
        changed=study.methods[options.method],
        study=changes,
    )
    work = state_folder(options.state, identity)
    run_study(
        params, *run, options.seed, options.rate, records, held_out, work, options.output, identity
    )
    print(f"{options.task} {options.method} seed {options.seed}: {options.output}")


def _study_report(options: argparse.Namespace) -> None:
    from star.study.page import write_study

    write_study(load_params(options.params), options.runs, options.output)
    print(f"study in {options.output}")


def _evaluate(options: argparse.Namespace) -> None:
    from star.prompts.records import read_benchmarks

    params = load_params(options.params)
    if not re.fullmatch(
        rf"base|({'|'.join(TASKS)})-[a-z0-9_]+", options.checkpoint
    ):  # it names a folder
        raise StarError(
            f"--checkpoint {options.checkpoint!r}: give base, or a task ({', '.join(TASKS)}) and a method: ocr-star"
        )
    if (options.adapter is None) != (options.checkpoint == "base"):
        raise StarError("--adapter goes with every checkpoint but `base`")
    read_benchmarks(options.prompts_dir)  # refused before the slow imports
    files = [
        *sorted(options.prompts_dir.glob("*/test.jsonl")),
        *sorted((options.adapter or Path("none")).glob("*")),
    ]
    with quick_imports():
        from star.evaluation.evaluate import evaluate
        from star.training.resume import code_digest, computing, folder_digest

    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    digests += [code_digest(), folder_digest(Path(params.model.path))]
    key = fingerprint(params.seed, params.model, params.evaluate, digests, computing(params.model))
    work = options.state / f"{options.checkpoint}-{key}"
    evaluate(params, options.checkpoint, options.adapter, options.prompts_dir, work, options.output)
    print(f"scores in {options.output / 'scores.json'}")


def _launch(options: argparse.Namespace) -> None:
    from star.system.launch import launch_command, shared_threads

    stage = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    shape = (options.gpus, options.processes, options.nodes)
    command = launch_command(stage, *shape, os.environ)
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
    from star.report.compare import compare_runs

    print(compare_runs(options.runs, options.output))
    if options.output is not None:
        print(f"comparison in {options.output}")


def _report(options: argparse.Namespace) -> None:
    from star.report.page import write_report

    write_report(load_params(options.params), options.params, options.results, options.output)
    print(f"report in {options.output}")


def _export(options: argparse.Namespace) -> None:
    with quick_imports():
        from star.report.export import export_adapter

    params = load_params(options.params)
    export_adapter(params, options.params, options.training, options.evaluation, options.output)
    print(f"adapter and card in {options.output}")


def _pretrain(options: argparse.Namespace) -> None:
    with quick_imports():
        from star.pretraining.generator import PretrainConfig, pretrain
        from star.pretraining.generator_card import write_card

    params = load_params(options.params)
    pretrain(options.output, options.work, PretrainConfig())
    write_card(options.output, options.work, PretrainConfig(), params)


def _pretrain_preference(options: argparse.Namespace) -> None:
    with quick_imports():
        from star.pretraining.preference import PreferenceConfig, pretrain_preference

    pretrain_preference(options.output, options.work, PreferenceConfig())


if __name__ == "__main__":
    sys.exit(main())
