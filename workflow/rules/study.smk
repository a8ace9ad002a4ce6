# The study: variants over seeds, one core a run, and the page that compares them. Only `snakemake study` asks for it.


rule study:
    input:
        "results/study/index.html",
        study_files(),


rule study_run:
    input:
        prompts="results/core/{task}/train.jsonl",
        held_out="results/core/{task}/test.jsonl",
        base=base_model(),
        start=lambda wildcards: initial_adapter(values["study"]["methods"], wildcards),
        reward=reward_models(),
    output:
        run="results/study/runs/{task}-{method}-{seed}-{rate}.json",
    log:
        "logs/study_run/{task}-{method}-{seed}-{rate}.log",
    benchmark:
        "logs/study_run/{task}-{method}-{seed}-{rate}.tsv"
    threads: 1
    resources:
        gpu=min(1, support.visible_gpus()),
        gpus_here=gpus_here,
        mem_mb=3000,
        runtime=240,
    params:
        sections=lambda wildcards: support.sections(values, "study_run", **wildcards),
        code=support.code_digest("study_run"),
    shell:
        "OMP_NUM_THREADS={threads} OPENBLAS_NUM_THREADS={threads}"
        " star study-run --params params.yaml --task {wildcards.task} --method {wildcards.method}"
        " --seed {wildcards.seed} --rate {wildcards.rate} --prompts {input.prompts} --held-out {input.held_out}"
        " --output {output.run} 2>&1 | tee {log}"


rule study_report:
    input:
        runs=study_files(),
    output:
        page="results/study/index.html",
        summary="results/study/summary.json",
        scores="results/study/scores.csv",
        curves="results/study/curves.csv",
        watch="results/study/watch.csv",
    log:
        "logs/study_report.log",
    benchmark:
        "logs/study_report.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        sections=support.sections(values, "study_report"),
        code=support.code_digest("study_report"),
    shell:
        "star study-report --params params.yaml --runs results/study/runs --output {output.page} 2>&1 | tee {log}"
