"""The jobs on a real Slurm: a cluster of one node that the tests start; skipped where Slurm is not installed."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

PROJECT = Path(__file__).parents[1]
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason="Slurm is not installed (slurmctld slurmd munge)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a cluster of one's own needs root"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
MinJobAge=300
ReturnToService=2
KillWait=3
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=1-0 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes={host} MaxTime=1-0 State=UP PriorityTier=10 PreemptMode=OFF
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands find the cluster."""
    folder = tmp_path_factory.mktemp("slurm")
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o711)  # munged refuses a socket behind closed doors
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    host = socket.gethostname().split(".")[0]
    text = CONF.format(host=host, port=free_port(), node_port=free_port(), folder=folder, cpus=os.cpu_count())
    (folder / "slurm.conf").write_text(text)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = ["munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock",
             f"--pid-file={folder}/munge/pid", f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed"]
    try:
        for command in (munge, ["slurmctld", "-c"], ["slurmd"]):
            subprocess.run(command, env=environment, check=True)
        for _ in range(100):
            asked = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
            if "idle" in asked.stdout:
                break
            time.sleep(0.1)
        else:
            pytest.fail((folder / "slurmctld.log").read_text()[-2000:])
        yield environment
        subprocess.run(["scancel", "--user=root"], env=environment, check=False)
    finally:
        for name in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
            if (folder / name).exists():
                subprocess.run(["kill", (folder / name).read_text().strip()], check=False)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh copy of what git would clone, with this environment."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    listed = subprocess.run(["git", "-C", str(PROJECT), "ls-files", "-co", "--exclude-standard"], capture_output=True,
                            text=True, check=True).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def submit(
    cluster: dict[str, str], clone: Path, cases: Path, name: str, *options: str, sbatch: tuple[str, ...] = ()
) -> str:
    """The number of a job that trains a tiny network on the CPU."""
    command = [
        "sbatch", "--parsable", "--gres=none", "--cpus-per-task=1", *sbatch, str(clone / "jobs" / "unet.job"),
        "--device", "cpu", "--model", "improved_unet", "--n-filters", "2", "--data", str(cases), "--window", "48", "64",
        "--batch-size", "8", "--val", "0", "--test", "0.3", "--name", name, *options,
    ]  # fmt: skip
    return subprocess.run(command, env=cluster, capture_output=True, text=True, check=True, cwd="/").stdout.strip()


def state_of(cluster: dict[str, str], job: str) -> str:
    shown = subprocess.run(["scontrol", "show", "job", job], env=cluster, capture_output=True, text=True).stdout
    found = re.search(r"JobState=(\w+)", shown)
    return found[1] if found else ""


def wait_for(cluster: dict[str, str], clone: Path, job: str, seconds: float = 120) -> str:
    """The state in which a job ended."""
    until = time.time() + seconds
    while time.time() < until:
        if (state := state_of(cluster, job)) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
            return state
        time.sleep(0.2)
    pytest.fail(f"job {job} is {state_of(cluster, job)}: {log(clone, job)}")


def log(clone: Path, job: str) -> str:
    path = clone / "runs" / "slurm" / f"{job}.log"
    return path.read_text() if path.exists() else "no log"


def weights(clone: Path, name: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load((clone / "runs" / name / "ImprovedUNet.safetensors").read_bytes())


def test_a_job_from_a_fresh_clone_leaves_results(cluster: dict[str, str], clone: Path, cases: Path) -> None:
    job = submit(cluster, clone, cases, "fresh", "--epochs", "1")
    assert wait_for(cluster, clone, job) == "COMPLETED", log(clone, job)
    assert (clone / "runs" / "fresh" / "results.md").exists() and "| WT |" in log(clone, job)
    again = submit(cluster, clone, cases, "fresh", "--epochs", "1")
    assert wait_for(cluster, clone, again) == "COMPLETED" and "is finished" in log(clone, again)


def until_trained(cluster: dict[str, str], clone: Path, job: str, name: str) -> None:
    """Wait until a run has its first epoch behind it."""
    for _ in range(600):
        if (clone / "runs" / name / "history.csv").exists():
            return
        assert state_of(cluster, job) in ("PENDING", "RUNNING", "CONFIGURING"), log(clone, job)
        time.sleep(0.1)
    pytest.fail(log(clone, job))


@pytest.mark.parametrize("how", ["signal", "requeue", "preemption"])
def test_a_job_that_is_cut_off_goes_on_as_if_nothing_had_happened(
    cluster: dict[str, str], clone: Path, cases: Path, how: str
) -> None:
    if not (clone / "runs" / "whole" / "results.md").exists():
        whole = submit(cluster, clone, cases, "whole", "--epochs", "12")
        assert wait_for(cluster, clone, whole) == "COMPLETED", log(clone, whole)
    job = submit(cluster, clone, cases, how, "--epochs", "12", sbatch=("--partition=low", "--exclusive"))
    until_trained(cluster, clone, job, how)
    if how == "signal":
        subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=cluster, check=True)
    elif how == "requeue":
        subprocess.run(["scontrol", "requeue", job], env=cluster, check=True)
    else:
        command = ["sbatch", "--parsable", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
        subprocess.run(command, env=cluster, check=True, capture_output=True)
    assert wait_for(cluster, clone, job) == "COMPLETED", log(clone, job)
    assert log(clone, job).count("== job") == 2, log(clone, job)  # it was started twice, into one log
    one, other = weights(clone, how), weights(clone, "whole")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_what_cannot_work_fails_in_seconds_and_says_why(cluster: dict[str, str], clone: Path, cases: Path) -> None:
    unknown = submit(cluster, clone, cases, "unknown", "--filters", "3")
    assert wait_for(cluster, clone, unknown) == "FAILED" and "--filters" in log(clone, unknown)
    job = str(clone / "jobs" / "unet.job")
    command = ["sbatch", "--parsable", "--gres=none", "--cpus-per-task=1", job, "--data", str(cases)]
    no_gpu = subprocess.run(command, env=cluster, capture_output=True, text=True, check=True).stdout.strip()
    assert wait_for(cluster, clone, no_gpu) == "FAILED" and "--device cpu" in log(clone, no_gpu)
    assert not (clone / "runs" / "unknown").exists()
