"""`star launch`: a stage in several processes, on this machine or on those of its SLURM job.

Their number comes from the rule's resources. torchrun starts the processes. On several machines
`srun` starts a torchrun on each, and they meet on the first one. `accelerate launch` wraps torchrun
too, except on a CPU, where it starts one process of any number: `refuse_lone_process`."""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from star.system.errors import StarError

# torchrun hands these on to the processes that it started.
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
# A process's own number, as torchrun, Open MPI, MPICH and Intel MPI, and MVAPICH give it.
_NUMBERS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
# Seconds that they have to save their work: the profiles signal a job 120 s before its limit.
_SHUTDOWN = 110


def launch_command(
    stage: Sequence[str], gpus: int, processes: int, nodes: int, environment: Mapping[str, str]
) -> list[str] | None:
    """Return the command that runs a stage in several processes, or None where one is enough.

    Args:
        stage: arguments of `star`, the stage's name first.
        gpus: of all machines together; each has a process of its own. 0: the CPU.
        processes: of all machines together, where there are more than GPUs.
        nodes: machines.
        environment: has the number of the SLURM job, which is all that Snakemake's plugin hands on.

    Raises:
        StarError: processes that the machines cannot share evenly, several machines outside a SLURM
            job, or more than it has.
    """
    count = max(gpus, processes)
    if count % nodes:
        unshared = f"{count} processes on {nodes} machines"
        raise StarError(f"{unshared}: give each as many (resources gpu, processes, nodes)")
    if count == 1:
        return None
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count // nodes}"]
    torchrun += [f"--signals-to-handle={_SIGNALS}", f"--shutdown-timeout={_SHUTDOWN}"]
    program = ["-m", "star.cli", *stage]
    if nodes == 1:
        return [*torchrun, "--standalone", *program]
    job = environment.get("SLURM_JOB_ID")
    said = _scontrol("show", "job", "--oneliner", job) if job else ""
    facts = dict(re.findall(r"(\w+)=(\S+)", said))  # by SLURM's own names
    found = int(facts.get("NumNodes", "0"))
    if job is None or found < nodes:
        here = f"a SLURM job of {found}" if job else "no SLURM job"
        raise StarError(
            f"{nodes} machines are asked for, and this is {here}: use the slurm profile with "
            "resources nodes, tasks, tasks_per_gpu and mpi, or start torchrun on each machine "
            "yourself"
        )
    first = _scontrol("show", "hostnames", facts["NodeList"]).split()[0]
    torchrun += [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-id={job}"]
    torchrun += [f"--rdzv-endpoint={first}:{20_000 + int(job) % 20_000}"]
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    # By default a step has one CPU.
    srun += ["--kill-on-bad-exit=1", f"--cpus-per-task={int(facts['NumCPUs']) // found}"]
    return [*srun, *torchrun, *program]


def refuse_lone_process(environment: Mapping[str, str]) -> None:
    """Refuse to be the one process that `accelerate launch` starts where several are asked for.

    On a CPU it gives that process an address where all would meet, but no number of its own.
    torchrun and mpirun give both.

    Raises:
        StarError: names the command that starts several.
    """
    meeting = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_PORT" in environment
    if meeting and not any(name in environment for name in _NUMBERS):
        raise StarError(
            "`accelerate launch` asks for several processes and starts one without --multi_gpu, as "
            "always on a CPU; start them with `star launch --processes 2 -- train ...`"
        )


def shared_threads(
    environment: Mapping[str, str], gpus: int, processes: int, nodes: int
) -> dict[str, str]:
    """Return ``environment`` with every ``*_NUM_THREADS`` divided by the processes of a machine.

    Snakemake sets them to the threads of the whole job. The arguments are `launch_command`'s.
    """
    each = max(gpus, processes) // nodes
    return dict(environment) | {
        key: str(max(1, int(value) // each))
        for key, value in environment.items()
        if key.endswith("_NUM_THREADS") and value.isdecimal()
    }


def _scontrol(*arguments: str) -> str:
    command = ["scontrol", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise StarError(
            f"{' '.join(command)}: {said}; SLURM has to say which machines a job has"
        ) from error
