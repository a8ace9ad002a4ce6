"""README and docs: generated tables and images are current, links lead somewhere, commands work.

A block marked `sh` or `python` runs, in a folder where a small run was made. One marked `shell`
cannot run there (it needs a network, a GPU, a cluster or hours); its commands parse.
"""

import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.cli.parser import get_main_parser as dvc_parser
from snakemake.cli import get_argument_parser as snakemake_parser

from docs import write_tables
from star.cli import _parser as star_parser
from tests.helpers.versioned import Project, prepare

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OWN_TRAINER = ROOT / "docs/your-own-trainer.md"  # tests/test_own_trainer.py runs it
OTHERS = {"cd", "cp", "git", "source"}  # programs whose words are not checked


@pytest.mark.parametrize("name", write_tables.PAGES)
def test_the_tables_are_those_of_the_figures(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert write_tables.filled(text) == text, "run `python -m docs.write_tables`"


def test_readme_is_one_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150 and len(text.encode()) <= 10_000


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])  # of docs/, mkdocs checks them
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if ":" not in link and not (ROOT / link).exists()] == []


# ------------------------------------------------------------------------------- the commands


def blocks(*kinds: str) -> list:
    """Return the text of every block of these kinds."""
    pattern = re.compile(rf"^( *)```({'|'.join(kinds)})\n(.*?)^\1```", re.M | re.S)
    found_blocks = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in pattern.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            place = f"{page.relative_to(ROOT)}:{line}"
            if page != OWN_TRAINER:
                found_blocks.append(pytest.param(textwrap.dedent(found[3]), id=place))
    return found_blocks


def words_of(block: str) -> Iterator[list[str]]:
    """Yield the words of each command of a block, comments and `;` and `&&` left out."""
    for line in block.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&"):
                if command:
                    yield command
                command = []
            else:
                command.append(word)


@pytest.mark.parametrize("block", blocks("sh", "shell"))
def test_the_commands_parse(block):
    for program, *arguments in words_of(block):
        if program == "star":
            star_parser().parse_args(arguments)
        elif program == "snakemake":
            snakemake_parser().parse_args(arguments)
        elif program == "dvc":
            dvc_parser().parse_args(arguments)
        elif program == "make":
            subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True)
            given = [word.removeprefix("ARGS=") for word in arguments if word.startswith("ARGS=")]
            snakemake_parser().parse_args(shlex.split(" ".join(given)))
        elif program == "python":
            file = arguments[1].replace(".", "/") + ".py" if arguments[0] == "-m" else arguments[0]
            assert (ROOT / file).exists(), file
        else:
            assert program in OTHERS, program


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the repository in which a whole small run was made."""
    return prepare(tmp_path_factory.mktemp("docs"), stand_in=False)


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("sh"))
def test_the_commands_run(block, project):
    params = project.root / "params.yaml"
    shutil.copy(params, project.folder)
    project.run("bash", "-ec", block)
    shutil.copy(project.folder / params.name, params)


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("python"))
def test_the_code_runs(block, project):
    project.run(sys.executable, "-c", block)
