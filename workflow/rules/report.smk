# The page and the numbers that DVC shows; then a note to DVC that they are up to date.


rule write_report:
    input:
        curves=expand("results/train/{run}/log.jsonl", run=trainings()),
        samples=expand("results/train/{run}/samples", run=trainings()),
        maps=expand("results/train/{run}/maps", run=trainings()),
        scores=expand("results/evaluate/{checkpoint}/scores.json", checkpoint=checkpoints()),
        lines=expand("results/evaluate/{checkpoint}/images.jsonl", checkpoint=checkpoints()),
        images=expand("results/evaluate/{checkpoint}/images", checkpoint=checkpoints()),
    output:
        page=report("results/report/index.html", caption="../report/page.rst", category="Result"),
        summary="results/metrics/summary.json",
        curves=report(
            "results/metrics/curves.csv", caption="../report/curves.rst", category="Result"
        ),
    log:
        "logs/write_report.log",
    benchmark:
        "logs/write_report.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        sections=support.sections(values, "write_report"),
        code=support.code_digest("write_report"),
    shell:
        "star report --params params.yaml --results results --output {output.page} 2>&1 | tee {log}"


# After this, `dvc repro` has nothing to do. Not an `onsuccess` hook: it would wait for itself under `dvc repro`, whose
# stages are kept from this rule by --allowed-rules. What DVC cannot record, as in a cache of others, is no failed run.
rule record_versions:
    input:
        rules.write_report.output,
        core_files(),
    output:
        touch(".star/versions-recorded"),
    log:
        "logs/record_versions.log",
    benchmark:
        "logs/record_versions.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        digest=support.recorded_digest(),
    shell:
        "if [ -d .dvc ] && [ -e .git ] && [ -f dvc.yaml ]; then"
        " dvc commit --force || echo 'All results are there. Only the record of DVC is missing, whose cache may not be"
        " yours to write (see above); for the record run: dvc commit --force';"
        " else echo 'not the root of a Git and DVC repository: nothing to record'; fi 2>&1 | tee {log}"
