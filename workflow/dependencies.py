"""The one table of what each rule's results depend on, besides its input files.

The rules read it (`workflow/support.py`), and `python -m workflow.make_dvc` makes dvc.yaml of it.
The code of a rule is whole packages of star/: coarser than single files, and so short enough to
check by eye. Files in them that make no results are named in .dvcignore, for Snakemake too.
`tests/workflow/test_contract.py` compares the table with what the modules import and read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """What a rule's results follow from, besides its input files."""

    file: str  # of the rule, in workflow/rules
    entry: str  # the module that does the rule's work
    packages: tuple[str, ...]  # folders and files that hold all that the entry imports
    sections: tuple[str, ...]  # dotted keys of params.yaml; {wildcards} are filled in
    in_dvc: bool = True


SHARED = ("star/__init__.py", "star/system", "star/config", "star/prompts")
POLICY = ("star/method", "star/policy", "star/miniature", "star/rewards", "star/preflight.py")
REPORTED = (
    "seed",
    "runs",
    "rewards.geneval.detector",
    "rewards.geneval.path",
    "rewards.preference.path",
    "train.evaluate_prompts",
    "evaluate.bootstrap",
    "evaluate.second_reader",
    "report",
)

RULES = {
    "prepare_prompts": Rule(
        file="prompts.smk",
        entry="star.prompts.prepare",
        packages=SHARED,
        sections=("seed", "prompts"),  # of all tasks: a training set leaves out every test set
    ),
    "extract_core": Rule(
        file="core.smk",
        entry="star.prompts.core_content",
        packages=SHARED,
        sections=(),
    ),
    "train_policy": Rule(
        file="train.smk",
        entry="star.training.loop",
        # Not all of star/evaluation: it scores held-out prompts, and changes more often.
        packages=(
            *(*SHARED, *POLICY, "star/training", "star/evaluation/__init__.py"),
            *("star/evaluation/drawing.py", "star/evaluation/scoring.py"),
        ),
        sections=(
            "seed",
            "model",
            "core",
            "rollout",
            "allocation",
            "methods.{method}",
            "train",
            "forward",
            "rewards.timeout",
            "rewards.{task}",
        ),
    ),
    "evaluate_checkpoint": Rule(
        file="evaluate.smk",
        entry="star.evaluation.evaluate",
        packages=(*SHARED, *POLICY, "star/evaluation"),
        sections=("seed", "model", "rewards", "evaluate"),
    ),
    "write_report": Rule(
        file="report.smk",
        entry="star.report.page",
        packages=(*SHARED, "star/evaluation", "star/report"),
        sections=(*REPORTED, "model.path"),
    ),
    # The study is asked for by name: hours of training whose tables go into Git by hand
    # (docs/study). As stages its runs, each of a (task, method, seed, rate), would make `dvc repro`
    # and `dvc status` ask for those hours too.
    "study_run": Rule(
        file="study.smk",
        entry="star.study.run",
        # Not all of star/study, whose pages change more often than its runs.
        packages=(
            *(*SHARED, *POLICY, "star/training", "star/evaluation"),
            *("star/study/__init__.py", "star/study/run.py"),
        ),
        sections=(
            "seed",
            "model",
            "core",
            "rollout",
            "allocation",
            "study.methods.{method}",
            "study.epochs",
            "study.evaluate_every",
            "study.second_reader",
            "train",
            "forward",
            "rewards",
            "evaluate",
        ),
        in_dvc=False,
    ),
    "study_report": Rule(
        file="study.smk",
        entry="star.study.page",
        packages=(*SHARED, "star/evaluation", "star/report", "star/study"),
        # It shares modules with the main report.
        sections=(*REPORTED, "model", "allocation", "train", "forward", "study"),
        in_dvc=False,
    ),
}
