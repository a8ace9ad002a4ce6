"""`star launch`: a stage in several processes, on this machine or on those of its SLURM job.

How many there are comes from the rule's resources, so that one of them moves a run from one process to one GPU, eight,
or four machines with eight each. Processes are started by torchrun: `accelerate launch`, which wraps it, starts one
process without a word where two are asked for on a CPU. Several machines are those of a SLURM job: `srun` starts a
torchrun on each, and they meet on the first one (tried on a SLURM of two nodes that are one machine, on CPUs).
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence

from star.errors import StarError

# torchrun hands these on to the processes that it started.
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


def launch_command(
    stage: Sequence[str], gpus: int, processes: int, nodes: int, environment: Mapping[str, str]
) -> list[str] | None:
    """The command that runs a stage in several processes; None where one is enough.

    Args:
        stage: arguments of `star`, the stage's name first.
        gpus: of all machines together; each has a process of its own. 0: the CPU.
        processes: of all machines together, where there are more than GPUs.
        nodes: machines.
        environment: where SLURM says which job this is.

    Raises:
        StarError: processes that the machines cannot share evenly, several machines outside a SLURM job, or more than
            it has.
    """
    count = max(gpus, processes)
    if count % nodes:
        raise StarError(f"{count} processes on {nodes} machines: give each as many (resources gpu, processes, nodes)")
    if count == 1:
        return None
    program = ["-m", "star.cli", *stage]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count // nodes)]
    torchrun += ["--signals-to-handle", _SIGNALS]
    if nodes == 1:
        return [*torchrun, "--standalone", *program]
    job, found = environment.get("SLURM_JOB_ID"), int(environment.get("SLURM_JOB_NUM_NODES", "0"))
    if job is None or found < nodes:
        raise StarError(
            f"{nodes} machines are asked for, and this is {f'a SLURM job of {found}' if job else 'no SLURM job'}: "
            "use the slurm profile with resources nodes, tasks, tasks_per_gpu and mpi (README, On a cluster), or "
            "start torchrun on each machine yourself"
        )
    meeting = f"{_first_machine(environment['SLURM_JOB_NODELIST'])}:{20_000 + int(job) % 20_000}"
    rendezvous = ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-id", job, "--rdzv-endpoint", meeting]
    spread = ["srun", "--nodes", str(nodes), "--ntasks", str(nodes), "--ntasks-per-node", "1", "--kill-on-bad-exit=1"]
    return [*spread, *torchrun, *rendezvous, *program]


def _first_machine(machines: str) -> str:
    """The first of SLURM's compact list, ``gpu[01-04]``."""
    shown = subprocess.run(["scontrol", "show", "hostnames", machines], capture_output=True, text=True, check=True)
    return shown.stdout.split()[0]
