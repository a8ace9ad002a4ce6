# Prompt sets of a task, training and held-out, as JSON lines of one schema.


rule prepare_prompts:
    input:
        files=lambda wildcards: support.prompt_files(values, wildcards.task),
    output:
        train="results/prompts/{task}/train.jsonl",
        test="results/prompts/{task}/test.jsonl",
    log:
        "logs/prepare_prompts/{task}.log",
    benchmark:
        "logs/prepare_prompts/{task}.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        sections=lambda wildcards: support.sections(values, "prepare_prompts", **wildcards),
        code=support.code_digest("prepare_prompts"),
    shell:
        "star prompts --params params.yaml --task {wildcards.task}"
        " --train {output.train} --test {output.test} 2>&1 | tee {log}"
