# What several rules name.

# Two trainings side by side, a core each, end sooner than one after the other on both. Beside a GPU the reward's
# processes need one, too.
JOB_CORES = 2 if support.visible_gpus() else 1


def trainings():
    """Names of the trainings of params.yaml: {task}-{method}."""
    return support.runs(values)


def checkpoints():
    """Names of what is evaluated: the base model and every training."""
    return ["base", *trainings()]


def base_model():
    """Files of the base model; none for a hub id."""
    return support.model_files(values["model"]["path"])


def reward_models(*tasks):
    """Files of the models that judge the given tasks, or all of them; none for hub ids."""
    return support.reward_model_files(values, *(tasks or TASKS))


def initial_adapter(methods, wildcards):
    """Files of the adapter from which a training starts; none for a fresh one."""
    return support.initial_adapter_files(values, methods[wildcards.method])


def adapter(wildcards):
    """The adapter of a checkpoint; none for the base model."""
    return [] if wildcards.checkpoint == "base" else f"results/train/{wildcards.checkpoint}/adapter"


def gpus_here(wildcards, rulename):
    """GPUs of this machine that a job takes, one for each process, as its rule, a profile or the command line says."""
    resources = workflow.get_rule(rulename).resources
    most = max(resources[name].value for name in ("gpu", "processes") if name in resources)
    return min(most, support.visible_gpus())


def study_files():
    """Every run of the study, results/study/runs/{task}-{method}-{seed}-{rate}.json."""
    return [
        f"results/study/runs/{run.name}.json"
        for run in load_params(Path("params.yaml")).study.runs()
    ]


def core_files():
    """Every file of core spans: DVC has a stage for each, whether or not a training of `runs` reads it."""
    return expand("results/core/{task}/{split}.jsonl", task=TASKS, split=("train", "test"))


def final_outputs(wildcards):
    """What a run is for: the page, its numbers, and a DVC that knows them.

    And a file of each stage before: a job that fails takes along its older results, which nothing else would ask for.
    """
    return [
        *expand("results/prompts/{task}/{split}.jsonl", task=TASKS, split=("train", "test")),
        *core_files(),
        *expand("results/train/{run}/adapter", run=trainings()),
        *expand("results/evaluate/{checkpoint}/scores.json", checkpoint=checkpoints()),
        *rules.write_report.output,
        *rules.record_versions.output,
    ]
