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
    processors = min(2, os.cpu_count() or 1)
    settings = {
        "ClusterName": "test",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder / 'munge.socket'}",
        "SlurmctldPort": 16817,
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool-%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd-%n.pid",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "slurmd-%n.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "MpiDefault": "none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "AccountingStorageType": "accounting_storage/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "MinJobAge": 86_400,
        "KillWait": _KILL_WAIT,
        "OverTimeLimit": 0,
        "GresTypes": "gpu",
        "ReturnToService": 2,
    }
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={processors} RealMemory=20000 "
        "Gres=gpu:1 State=UNKNOWN"
        for port, name in enumerate((host, _SECOND), 16818)
    ]
    rest = "MaxTime=INFINITE State=UP"
    partitions = [f"PartitionName=main Nodes={host} Default=YES {rest}"]
    partitions += [f"PartitionName=both Nodes={host},{_SECOND} {rest}"]
    lines = [
        f"{_OWNER}{os.getpid()}",
        *(f"{key}={value}" for key, value in settings.items()),
        *nodes,
        *partitions,
    ]
    for name in ("state", "munge"):
        (folder / name).mkdir(parents=True)
    started: list[subprocess.Popen] = []
    try:
        CONFIG.parent.mkdir(parents=True, exist_ok=True)
        CONFIG.write_text("\n".join(lines) + "\n")
        gres.write_text(f"NodeName={host},{_SECOND} Name=gpu File=/dev/null\n")
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = (
            "--key-file",
            key,
            "--pid-file",
            folder / "munge" / "pid",
            "--log-file",
            folder / "munge" / "log",
        )
        files += ("--seed-file", folder / "munge" / "seed", "--socket", folder / "munge.socket")
        commands = [["munged", "--foreground", "--force", *map(str, files)], ["slurmctld", "-D"]]
        commands += [["slurmd", "-D", "-N", name] for name in (host, _SECOND)]
        for command in commands:
            with open(folder / f"{command[0]}-{len(started)}.out", "wb") as log:
                whole = ["setpriv", "--pdeathsig", "TERM", *command]
                started.append(subprocess.Popen(whole, stdout=log, stderr=log))
            time.sleep(1)
        _wait_for_node(folder, started)
        yield
    finally:
        if len(started) == 4:
            subprocess.run(["scancel", "--user", "root"], capture_output=True, timeout=60)
            for _ in range(3 * _KILL_WAIT):  # no job outlives its scheduler
                if not subprocess.run(
                    ["squeue", "--noheader"], capture_output=True, timeout=60
                ).stdout.strip():
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


def _wait_for_node(folder: Path, started: list[subprocess.Popen]) -> None:
    for _ in range(60):
        answer = subprocess.run(
            ["sinfo", "--noheader", "--format", "%T"], capture_output=True, text=True
        )
        if set(answer.stdout.split()) == {"idle"}:
            return
        dead = [str(process.args) for process in started if process.poll() is not None]
        if dead:
            break
        time.sleep(0.5)
    logs = "\n".join(file.read_text(errors="replace")[-1500:] for file in folder.glob("*.out"))
    raise RuntimeError(f"the scheduler did not start: {answer.stdout}{answer.stderr}\n{logs}")
