"""A stage as several processes: the command for one machine and for several, and refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from star.cli import main
from star.system.errors import StarError
from star.system.launch import launch_command, refuse_lone_process, shared_threads

STAGE = ["train", "--task", "ocr"]


def test_one_process_is_the_stage_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch_command(STAGE, 0, 1, 1, {}) is None and launch_command(STAGE, 1, 1, 1, {}) is None
    with pytest.raises(SystemExit) as end:
        main(["launch", "--", "plan", "--task", "ocr", "--json"])
    assert end.value.code == 0 and "tasks" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("gpus", "processes"), [(8, 1), (0, 8), (8, 8), (2, 8)])
def test_each_gpu_has_a_process(gpus: int, processes: int) -> None:
    command = launch_command(STAGE, gpus, processes, 1, {})
    assert command is not None and {"--nproc-per-node=8", "--standalone"} < set(command)
    assert command[-5:] == ["-m", "star.cli", *STAGE]


@pytest.mark.parametrize(
    ("gpus", "processes", "nodes", "threads"),
    [(16, 1, 1, "1"), (0, 2, 1, "4"), (32, 1, 4, "1"), (4, 1, 2, "4")],
)
def test_processes_share_the_threads_of_their_job(
    gpus: int, processes: int, nodes: int, threads: str
) -> None:
    job = {"OMP_NUM_THREADS": "8", "MKL_NUM_THREADS": "8"}
    other = {"OPENBLAS_NUM_THREADS": "auto", "PATH": "8"}
    shared = dict.fromkeys(job, threads) | other
    assert shared_threads(job | other, gpus, processes, nodes) == shared


@pytest.fixture
def slurm_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in of `scontrol` that knows one job, 45, of four machines with 16 processors each."""
    (tmp_path / "scontrol").write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "  'show job --oneliner 45') echo 'JobId=45 JobName=a b NumNodes=4 NumCPUs=64 "
        "ReqNodeList=(null) NodeList=gpu[01-04]';;\n"
        "  'show hostnames gpu[01-04]') printf 'gpu01\\ngpu02\\ngpu03\\ngpu04\\n';;\n"
        "  *) echo 'Invalid job id specified' >&2; exit 1;;\n"
        "esac\n"
    )
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.usefixtures("slurm_job")
def test_machines_of_a_slurm_job_meet_on_the_first() -> None:
    command = launch_command(STAGE, 32, 1, 4, {"SLURM_JOB_ID": "45"})
    assert command is not None and command[0] == "srun" and "--standalone" not in command
    by_srun = {"--nodes=4", "--ntasks=4", "--cpus-per-task=16"}
    by_torchrun = {"--nnodes=4", "--nproc-per-node=8", "--rdzv-endpoint=gpu01:20045"}
    start = command.index(sys.executable)
    assert by_srun < set(command[:start]) and by_torchrun < set(command[start:])


@pytest.mark.parametrize(
    ("count", "nodes", "job", "message"),
    [
        (3, 2, {}, "3 processes on 2 machines"),
        (4, 2, {}, "no SLURM job"),
        (8, 8, {"SLURM_JOB_ID": "45"}, "a SLURM job of 4"),
        (4, 2, {"SLURM_JOB_ID": "7"}, "scontrol show job --oneliner 7: Invalid job id"),
    ],
)
@pytest.mark.usefixtures("slurm_job")
def test_what_cannot_be_launched_is_refused(
    count: int, nodes: int, job: dict[str, str], message: str
) -> None:
    with pytest.raises(StarError, match=message):
        launch_command(STAGE, 0, count, nodes, job)


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "saving"), [(signal.SIGTERM, 33), (signal.SIGUSR1, 0)])
def test_every_process_hears_a_signal(tmp_path: Path, asked: signal.Signals, saving: int) -> None:
    """And has time to save: of itself torchrun would kill it after 30 s."""
    (tmp_path / "star").mkdir()
    (tmp_path / "star/__init__.py").touch()  # goes before one installed elsewhere
    (tmp_path / "star" / "cli.py").write_text(
        "import os, signal, sys, time\n"
        "rank, folder = os.environ['RANK'], sys.argv[1]\n"
        "def heard(number, frame):\n"
        f"    time.sleep({saving})\n"
        "    open(f'{folder}/{rank}-{number}', 'w').close()\n"
        "    sys.exit(75)\n"
        f"signal.signal({int(asked)}, heard)\n"
        "open(f'{folder}/{rank}-ready', 'w').close()\n"
        "time.sleep(60)\n"
    )
    command = launch_command([str(tmp_path)], 0, 2, 1, {})
    assert command is not None and command[0] == sys.executable
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        ready = [tmp_path / f"{rank}-ready" for rank in (0, 1)]
        while not all(file.exists() for file in ready):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(asked)
        assert process.wait(90) != 0
    assert all((tmp_path / f"{rank}-{int(asked)}").exists() for rank in (0, 1))


ALONE = "import os; from star.system import launch; launch.refuse_lone_process(os.environ)"


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "refused"), [(2, True), (1, False)])
def test_accelerate_that_starts_one_of_several_is_refused(
    processes: int, refused: bool, tmp_path: Path
) -> None:
    (tmp_path / "stage.py").write_text(ALONE)
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu"]
    command += [f"--num_processes={processes}", "--quiet", str(tmp_path / "stage.py")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ended.returncode != 0) == refused, ended.stderr
    assert ("star launch --processes 2" in ended.stderr) == refused


def test_a_process_of_torchrun_or_mpirun_is_not_alone() -> None:
    asked = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}
    with pytest.raises(StarError, match="starts one"):
        refuse_lone_process(asked)
    for name in ("RANK", "PMI_RANK"):
        refuse_lone_process(asked | {name: "0"})
    refuse_lone_process({"MASTER_PORT": "29500"})
