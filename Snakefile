# The whole pipeline: prompts -> core spans -> training -> evaluation -> report. Start it with `snakemake --cores all`
# (`make run` does); the study, which `rule all` leaves out, with `make study`. Settings: profiles/default/config.yaml.
# Every knob is in params.yaml; a rule reruns when its sections of that file, its code or its inputs change.
import os
import sys
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

sys.path.insert(0, workflow.basedir)  # this checkout, not what is installed

from star.system.errors import StarError
from star.system.locks import take_lock
from star.config.reading import load_params
from star.config.params import TASKS
from workflow import support

min_version("9.0")

STARTED = time.time()

support.prefer_code_in(workflow.basedir)


# GPUs of one machine, not of all jobs of a cluster together.
resource_scopes:
    gpus_here="local",


# No more jobs at a time than there are GPUs for. `star` finds each job a free one.
if gpus := support.visible_gpus():
    workflow.register_resource("gpus_here", gpus)


# A scheduler that stops a job signals all its processes. The shell and `tee`, which is the last in a pipe and so in a
# subshell of its own, wait for the stage, which saves its work. The stage's status is the job's: a log that takes no
# more, as on a full disk, fails no job, for Snakemake would delete what it made.
shell.prefix(
    "set -euo pipefail; trap : TERM USR1; "
    'tee() {{ trap "" TERM USR1; command tee "$@" || echo "warning: the log $1 is incomplete" >&2 || :; }}; '
)


# Not by `configfile:`, whose loader runs Python that it finds in a file with `__use_yte__: true`.
try:
    values = support.checked_values(config, Path("params.yaml"))
except StarError as error:
    raise WorkflowError(str(error)) from error
config.update(values)
workflow.configfiles.append("params.yaml")  # shown by `make report`


wildcard_constraints:
    task="|".join(TASKS),
    split="train|test",
    method="[a-z0-9_]+",
    checkpoint=f"base|({'|'.join(TASKS)})-[a-z0-9_]+",
    seed="[0-9]+",
    rate="[0-9][0-9.e-]*",


localrules:
    all,
    study,
    prepare_prompts,
    extract_core,
    record_versions,


include: "workflow/rules/common.smk"
include: "workflow/rules/prompts.smk"
include: "workflow/rules/core.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/study.smk"


onstart:
    try:
        # Snakemake's own lock lets a second `snakemake` train beside `dvc repro`, and survives a kill.
        take_lock(
            Path(".star/workflow.lock"),
            "dvc repro" if "DVC_STAGE" in os.environ else "snakemake",
        )
    except StarError as error:
        raise WorkflowError(str(error)) from error
    if "DVC_STAGE" not in os.environ:
        print(support.announcement(values), file=sys.stderr)


onsuccess:
    page = Path("results/report/index.html")
    if page.exists() and page.stat().st_mtime > STARTED:
        print(
            "Open results/report/index.html: gains, curves, images before and after.",
            file=sys.stderr,
        )


rule all:
    default_target: True
    input:
        final_outputs,
