# One training a task and method. Its resume state lies in .star/state, which neither Snakemake nor DVC deletes.


rule train_policy:
    input:
        prompts="results/core/{task}/train.jsonl",
        held_out="results/core/{task}/test.jsonl",
        base=base_model(),
        start=lambda wildcards: initial_adapter(values["methods"], wildcards),
        reward=lambda wildcards: reward_models(wildcards.task),
    output:
        adapter=directory("results/train/{task}-{method}/adapter"),
        curve="results/train/{task}-{method}/log.jsonl",
        samples=report(
            directory("results/train/{task}-{method}/samples"),
            patterns=["epoch_{epoch}.png"],
            caption="../report/samples.rst",
            category="Samples",
            labels={"task": "{task}", "method": "{method}", "epochs": "{epoch}"},
        ),
        maps=report(
            directory("results/train/{task}-{method}/maps"),
            patterns=["epoch_{epoch}_{prompt}_step_0.png"],
            caption="../report/maps.rst",
            category="Allocation maps",
            labels={
                "task": "{task}",
                "method": "{method}",
                "epochs": "{epoch}",
                "prompt": "{prompt}",
            },
        ),
        parameters="results/train/{task}-{method}/parameters.json",
    log:
        "logs/train_policy/{task}-{method}.log",
    benchmark:
        "logs/train_policy/{task}-{method}.tsv"
    priority: 1  # they take longest: started last, one would run alone
    threads: JOB_CORES
    resources:
        gpu=min(1, support.visible_gpus()),
        gpus_here=gpus_here,
        processes=1,
        nodes=1,
        mem_mb=5000,
        runtime=240,
    params:
        sections=lambda wildcards: support.sections(values, "train_policy", **wildcards),
        code=support.code_digest("train_policy"),
    shell:
        "star launch --gpus {resources.gpu} --processes {resources.processes} --nodes {resources.nodes} --"
        " train --params params.yaml --task {wildcards.task} --method {wildcards.method}"
        " --prompts {input.prompts} --held-out {input.held_out} --output results/train/{wildcards.task}-{wildcards.method} 2>&1 | tee {log}"
