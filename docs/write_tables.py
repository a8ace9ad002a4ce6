"""Write the tables of README.md and docs/ from the committed figures.

    python -m docs.write_tables

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

from docs import study_tables
from docs.study_tables import read_rows, signed, table, whole

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "docs/results/short/summary.json"  # of results/metrics, which a run here changes
FULL = ROOT / "docs/results/full"
FIGURES = ROOT / "benchmarks/figures"
PAGES = ("README.md", "docs/results/index.md", "docs/study/index.md", "docs/study/tried.md")
PAGES += ("docs/study/crowded-world.md", "docs/licences.md")

METRICS = {  # task, key -> head of its column, digits
    ("geneval", "strict"): ("GenEval-style, strict", 3),
    ("geneval", "soft"): ("GenEval-style, soft", 3),
    ("ocr", "reward"): ("OCR reward", 3),
    ("ocr", "exact"): ("OCR, exact", 3),
    ("preference", "score"): ("preference stand-in", 2),
}
TRAINED = {"geneval": "soft", "ocr": "reward", "preference": "score"}  # what is a reward
BLOCKS = {
    "0": ("core", "0"),
    "3": ("core", "3"),
    "4": ("core", "4"),
    "6": ("core", "6"),
    "0 and 6, as `star` reads them": ("core", "chosen"),
    "0 and 6, CLIP tokens alone": ("clip", "chosen"),
    "0 and 6, T5 tokens alone": ("t5", "chosen"),
    "6, CLIP tokens alone": ("clip", "6"),
}
PRECISE = {
    "star_precise": "one advantage, maps of the finished image",
    "star_clauses_precise": "clause-wise, maps of the finished image",
}

CROWDED = {  # benchmarks/figures/credit-crowded-*.json
    "star": "`star`: blocks 0 and 6, CLIP and T5 tokens",
    "star_clip": "the same, CLIP tokens alone",
    "clip_shuffled": "these maps shuffled",
    "s_lam16": "these maps, `lam` 16",
    "s_smooth": "these maps, `smoothing` 1",
    "star_clauses": "`star_clauses`: clause-wise, blocks 0, 4, 6, CLIP tokens",
    "clauses_shuffled": "these maps shuffled",
    "c_lam16": "these maps, `lam` 16",
    "c_lam64": "these maps, `lam` 64",
    "c_smooth": "these maps, `smoothing` 1",
    "c_own": "these blocks, `clause_maps: own`",
    "c_five": "clause-wise, blocks 0, 1, 4, 5, 6",
    "c_five_lam16": "the same, `lam` 16",
    "star_places": "**places of the prompt's objects**",
    "star_clauses_places": "**the same, clause-wise**",
}


def short_table() -> list[str]:
    """Return what the default run gives, each task on its own benchmark."""
    summary = json.loads(RUN.read_text(encoding="utf-8"))
    methods = ["flow_grpo", "star"]
    rows = []
    for task, key in TRAINED.items():
        names = ["base", *(f"{task}-{method}" for method in methods)]
        cells = [_interval(summary, name, task, key) for name in names]
        rows.append([METRICS[task, key][0], *cells])
    return table(["benchmark", "base model", *(f"`{method}`" for method in methods)], rows)


def run_table(path: Path) -> list[str]:
    """Return every benchmark of every checkpoint, bold where it was trained."""
    summary = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for name in summary:
        cells = []
        for task, key in METRICS:
            text = _interval(summary, name, task, key)
            cells.append(f"**{text}**" if name.startswith(f"{task}-") else text)
        rows.append([checkpoint(name), *cells])
    return table(["checkpoint", *(head for head, _ in METRICS.values())], rows)


def gains() -> list[str]:
    """Return the full run's paired gains, as `star compare` printed them."""
    rows = [
        [
            checkpoint(row["checkpoint"]),
            row["benchmark"],
            signed(*(float(row[key]) for key in ("mean", "low", "high"))),
        ]
        for row in read_rows(FULL / "gains.csv")
    ]
    return table(["checkpoint", "benchmark", "gain over the base model"], rows)


def maps() -> list[str]:
    """Return how relevance at the first step correlates with what is drawn."""
    found = json.loads((FIGURES / "maps.json").read_text(encoding="utf-8"))
    rows = []
    for name, (tokens, block) in BLOCKS.items():
        cells = (found[f"{task} {tokens}"][block] for task in ("geneval", "ocr"))
        rows.append(
            [name, *(whole(f"{c['covers'][0]:.2f} ({c['tells_apart'][0]:.2f})") for c in cells)]
        )
    return table(["block", "objects", "letters"], rows)


def credit() -> list[str]:
    """Return what an epoch's gradient of each method is worth."""
    files = (FIGURES / f"credit-{task}.json" for task in ("ocr", "geneval"))
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    rows = []
    for method in found[0]:
        if method in ("epochs", "images", "flow_grpo"):
            continue
        ends = ([f"{of[method][key]:.2f}" for key in ("efficiency", "low", "high")] for of in found)
        cells = [whole(f"{mean} ({low} to {high})") for mean, low, high in ends]
        rows.append([PRECISE.get(method, f"`{method}`"), *cells])
    return table(["method", "OCR", "GenEval-style"], rows)


def crowded() -> list[str]:
    """Return what a gradient is worth in the crowded world; a dash was not measured."""
    files = {
        f"`{algorithm}`, {head}": FIGURES / f"credit-crowded-{task}-{algorithm}.json"
        for algorithm in ("flow_grpo", "awm")
        for task, head in (("ocr", "OCR"), ("geneval", "GenEval-style"))
    }
    found = {head: json.loads(file.read_text(encoding="utf-8")) for head, file in files.items()}

    def cell(of: dict, method: str) -> str:
        if method not in of:
            return "–"
        mean, low, high = (of[method][key] for key in ("efficiency", "low", "high"))
        text = whole(f"{mean:.2f} ({low:.2f} to {high:.2f})")
        return f"**{text}**" if low > 1 or high < 1 else text

    rows = [[label, *(cell(of, m) for of in found.values())] for m, label in CROWDED.items()]
    return table(["maps", *found], rows)


def licences() -> list[str]:
    """Return the licences of what `make install` installs."""
    with open(ROOT / "docs/licences.csv", encoding="utf-8", newline="") as stream:
        heads, *rows = csv.reader(stream)
    return table(heads, rows)


def checkpoint(name: str) -> str:
    """Write a checkpoint's task and method."""
    return whole(name.replace("-", " · ", 1))


def _interval(summary: dict, checkpoint: str, task: str, key: str) -> str:
    """Write a mean and its interval; a dash where that checkpoint was not trained."""
    if checkpoint not in summary:
        return "–"
    found, digits = summary[checkpoint][task][key], METRICS[task, key][1]
    mean, low, high = (f"{found[end]:.{digits}f}" for end in ("mean", "low", "high"))
    return whole(f"{mean} ({low} to {high})")


TABLES: dict[str, Callable[[], list[str]]] = {
    "short": short_table,
    "run": lambda: run_table(RUN),
    "full": lambda: run_table(FULL / "summary.json"),
    "gains": gains,
    "finding": study_tables.finding,
    "study-ocr": lambda: study_tables.scores("ocr"),
    "study-geneval": lambda: study_tables.scores("geneval"),
    "rewards-ocr": lambda: study_tables.rewards("ocr"),
    "rewards-geneval": lambda: study_tables.rewards("geneval"),
    "again-ocr": lambda: study_tables.scores("ocr", "again"),
    "again-geneval": lambda: study_tables.scores("geneval", "again"),
    "again-rewards-ocr": lambda: study_tables.rewards("ocr", "again"),
    "again-rewards-geneval": lambda: study_tables.rewards("geneval", "again"),
    "watched-ocr": lambda: study_tables.watched("ocr"),
    "watched-geneval": lambda: study_tables.watched("geneval"),
    "maps": maps,
    "credit": credit,
    "crowded": crowded,
    "licences": licences,
}


def filled(text: str) -> str:
    """Return a page with its tables written anew."""

    def fill(found: re.Match[str]) -> str:
        lines = "\n".join(TABLES[found[1]]())
        return f"<!-- table: {found[1]} -->\n\n{lines}\n\n<!-- end -->"

    return re.sub(r"<!-- table: ([a-z-]+) -->.*?<!-- end -->", fill, text, flags=re.S)


def main() -> None:
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
