"""`star launch`: a stage in several processes, on this machine or on those of its SLURM job.

How many there are comes from the rule's resources, so that one of them moves a run from one process
to one GPU, eight, or four machines with eight each. Processes are started by torchrun: `accelerate
launch`, which wraps it, starts one process without a word where two are asked for on a CPU. Several
machines are those of a SLURM job: `srun` starts a torchrun on each, and they meet on the first one
(tried on a SLURM of two nodes that are one machine, on CPUs)."""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from star.system.errors import StarError

# torchrun hands these on to the processes that it started.
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
# Seconds that they have to save their work. The profiles have a job signalled 120 s before its
# limit.
_SHUTDOWN = 110


def launch_command(
    stage: Sequence[str], gpus: int, processes: int, nodes: int, environment: Mapping[str, str]
) -> list[str] | None:
    """The command that runs a stage in several processes; None where one is enough.

    Args:
        stage: arguments of `star`, the stage's name first.
        gpus: of all machines together; each has a process of its own. 0: the CPU.
        processes: of all machines together, where there are more than GPUs.
        nodes: machines.
        environment: where SLURM says which job this is, and no more: Snakemake's plugin hands on
            the number alone.

    Raises:
        StarError: processes that the machines cannot share evenly, several machines outside a SLURM
            job, or more than it has.
    """
    count = max(gpus, processes)
    if count % nodes:
        raise StarError(
            f"{count} processes on {nodes} machines: give each as many (resources gpu, processes, nodes)"
        )
    if count == 1:
        return None
    program = ["-m", "star.cli", *stage]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(count // nodes),
    ]
    torchrun += ["--signals-to-handle", _SIGNALS, "--shutdown-timeout", str(_SHUTDOWN)]
    if nodes == 1:
        return [*torchrun, "--standalone", *program]
    job = environment.get("SLURM_JOB_ID")
    facts = _job_facts(job) if job else {}
    found = int(facts.get("NumNodes", "0"))
    if job is None or found < nodes:
        raise StarError(
            f"{nodes} machines are asked for, and this is {f'a SLURM job of {found}' if job else 'no SLURM job'}: "
            "use the slurm profile with resources nodes, tasks, tasks_per_gpu and mpi (README, On a cluster), or "
            "start torchrun on each machine yourself"
        )
    meeting = f"{_scontrol('show', 'hostnames', facts['NodeList']).split()[0]}:{20_000 + int(job) % 20_000}"
    rendezvous = [
        "--nnodes",
        str(nodes),
        "--rdzv-backend",
        "c10d",
        "--rdzv-id",
        job,
        "--rdzv-endpoint",
        meeting,
    ]
    spread = [
        "srun",
        "--nodes",
        str(nodes),
        "--ntasks",
        str(nodes),
        "--ntasks-per-node",
        "1",
        "--kill-on-bad-exit=1",
    ]
    spread += [
        "--cpus-per-task",
        str(int(facts["NumCPUs"]) // found),
    ]  # a step's own default is one
    return [*spread, *torchrun, *rendezvous, *program]


def shared_threads(
    environment: Mapping[str, str], gpus: int, processes: int, nodes: int
) -> dict[str, str]:
    """``environment`` with each ``*_NUM_THREADS``, which Snakemake sets to the threads of the whole
    job, divided by the processes of a machine, as `launch_command` counts them. One at least; what
    is no number stays."""
    each = max(gpus, processes) // nodes
    threads = {
        key: value
        for key, value in environment.items()
        if key.endswith("_NUM_THREADS") and value.isdecimal()
    }
    return dict(environment) | {
        key: str(max(1, int(value) // each)) for key, value in threads.items()
    }


def _job_facts(job: str) -> dict[str, str]:
    """What SLURM knows of a job, by its own names."""
    return dict(re.findall(r"(\w+)=(\S+)", _scontrol("show", "job", "--oneliner", job)))


def _scontrol(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["scontrol", *arguments], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise StarError(
            f"scontrol {' '.join(arguments)}: {said}; SLURM has to say which machines a job has"
        ) from error
