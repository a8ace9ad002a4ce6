# Core spans: the characters of a prompt that say what has to be in the image.


rule extract_core:
    input:
        prompts="results/prompts/{task}/{split}.jsonl",
    output:
        core="results/core/{task}/{split}.jsonl",
    log:
        "logs/extract_core/{task}-{split}.log",
    benchmark:
        "logs/extract_core/{task}-{split}.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        sections=lambda wildcards: support.sections(values, "extract_core", **wildcards),
        code=support.code_digest("extract_core"),
    shell:
        "star core --params params.yaml --prompts {input.prompts} --output {output.core} 2>&1 | tee {log}"
