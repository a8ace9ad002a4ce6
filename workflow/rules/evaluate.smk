# A checkpoint (the base model, or a trained adapter on it) on every benchmark, from the same noise for all.


rule evaluate_checkpoint:
    input:
        prompts=expand("results/core/{task}/test.jsonl", task=TASKS),
        base=base_model(),
        reward=reward_models(),
        adapter=adapter,
    output:
        scores="results/evaluate/{checkpoint}/scores.json",
        metrics=report(
            "results/evaluate/{checkpoint}/metrics.json",
            caption="../report/scores.rst",
            category="Scores",
            labels={"checkpoint": "{checkpoint}"},
        ),
        lines="results/evaluate/{checkpoint}/images.jsonl",
        images=directory("results/evaluate/{checkpoint}/images"),
    log:
        "logs/evaluate_checkpoint/{checkpoint}.log",
    benchmark:
        "logs/evaluate_checkpoint/{checkpoint}.tsv"
    threads: JOB_CORES
    resources:
        gpu=min(1, support.visible_gpus()),
        gpus_here=gpus_here,
        processes=1,
        nodes=1,
        mem_mb=5000,
        runtime=120,
    params:
        adapter=lambda wildcards, input: f"--adapter {input.adapter}" if input.adapter else "",
        sections=lambda wildcards: support.sections(values, "evaluate_checkpoint"),
        code=support.code_digest("evaluate_checkpoint"),
    shell:
        "star launch --gpus {resources.gpu} --processes {resources.processes} --nodes {resources.nodes} --"
        " evaluate --params params.yaml --prompts-dir results/core --checkpoint {wildcards.checkpoint}"
        " {params.adapter} --output results/evaluate/{wildcards.checkpoint} 2>&1 | tee {log}"
