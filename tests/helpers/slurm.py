"""A SLURM on the loopback: munge, slurmctld, and two of slurmd, each a node with a GPU declared on
the null device.

The second node is for jobs of several nodes, and in the partition `both` alone. It has the name
that every machine has for itself, so that each node's name leads to this machine.

Its configuration must lie in /etc/slurm, so it needs root, and a machine that has no SLURM
configured but by tests that were killed. The programs end with the tests' process, however that
ends."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers import programs

CONFIG = Path("/etc/slurm/slurm.conf")
PACKAGES = "slurm-wlm munge"
_OWNER = "# written by the tests, process "  # the first line of CONFIG, with the process's number
_PROGRAMS = ("setpriv", "munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
_SECOND = "localhost"
_KILL_WAIT = 5  # seconds between SIGTERM and SIGKILL of a job that ran out of time


def missing() -> str | None:
    """Why no scheduler can be started here; None if one can. In CI the packages are installed if
    they are absent."""
    if os.geteuid() != 0:
        return "starting a scheduler needs root"
    if CONFIG.exists() and not _is_leftover():
        return f"{CONFIG}: this machine has a SLURM already"
    return programs.missing(_PROGRAMS, PACKAGES)


def _is_leftover() -> bool:
    """Whether the configuration is of tests that were killed before they could remove it."""
    first = CONFIG.read_text().partition("\n")[0]
    return first.startswith(_OWNER) and not Path("/proc", first.removeprefix(_OWNER)).exists()


@contextmanager
def scheduler(folder: Path) -> Iterator[None]:
    """Inside, `sbatch` works, and one node has two processors and a GPU. Ends what it started and
    removes its files."""
    host, gres = socket.gethostname(), CONFIG.with_name("gres.conf")
    for name in ("state", "munge"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge/key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
    files = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged += [f"--{option}={folder}/munge/{name}" for option, name in files.items()]
    commands = [munged, ["slurmctld", "-D"]]
    commands += [["slurmd", "-D", "-N", name] for name in (host, _SECOND)]
    started: list[subprocess.Popen] = []
    try:
        CONFIG.parent.mkdir(parents=True, exist_ok=True)
        CONFIG.write_text(_configuration(folder, host), encoding="utf-8")
        gres.write_text(f"NodeName={host},{_SECOND} Name=gpu File=/dev/null\n", encoding="utf-8")
        for command in commands:
            with open(folder / f"{command[0]}-{len(started)}.out", "wb") as log:
                whole = ["setpriv", "--pdeathsig", "TERM", *command]
                started.append(subprocess.Popen(whole, stdout=log, stderr=log))
            time.sleep(1)
        _wait_for_node(folder, started)
        yield
    finally:
        if len(started) == len(commands):
            _ask("scancel", "--user", "root")
            for _ in range(3 * _KILL_WAIT):  # no job outlives its scheduler
                if not _ask("squeue", "--noheader").stdout.strip():
                    break
                time.sleep(1)
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        CONFIG.unlink(missing_ok=True)
        gres.unlink(missing_ok=True)


def _configuration(folder: Path, host: str) -> str:
    """Return slurm.conf, filled in from the file beside this one."""
    processors = min(2, os.cpu_count() or 1)
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={processors} "
        "RealMemory=20000 Gres=gpu:1 State=UNKNOWN"
        for port, name in enumerate((host, _SECOND), 16818)
    ]
    return (
        Path(__file__)
        .with_suffix(".conf")
        .read_text(encoding="utf-8")
        .format(
            owner=f"{_OWNER}{os.getpid()}",
            folder=folder,
            host=host,
            second=_SECOND,
            kill_wait=_KILL_WAIT,
            nodes="\n".join(nodes),
        )
    )


def _ask(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def _wait_for_node(folder: Path, started: list[subprocess.Popen]) -> None:
    for _ in range(60):
        answer = _ask("sinfo", "--noheader", "--format", "%T")
        if set(answer.stdout.split()) == {"idle"}:
            return
        if any(process.poll() is not None for process in started):
            break
        time.sleep(0.5)
    logs = "\n".join(file.read_text(errors="replace")[-1500:] for file in folder.glob("*.out"))
    raise RuntimeError(f"the scheduler did not start: {answer.stdout}{answer.stderr}\n{logs}")
