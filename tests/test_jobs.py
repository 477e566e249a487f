"""The jobs on a real Slurm: a cluster of one node that the tests start; skipped where Slurm is not installed."""

import csv
import os
import random
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

from tests.conftest import free_port
from tests.test_images import tree

PROJECT = Path(__file__).parents[1]
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason="Slurm is not installed (slurmctld slurmd munge)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a cluster of one's own needs root"),
]


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
KillWait=30
FirstJobId={first}
GresTypes=gpu
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2 RealMemory=4000 State=UNKNOWN
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
    text = CONF.format(host=host, port=free_port(), node_port=free_port(), folder=folder,
                       first=random.SystemRandom().randrange(1, 50_000))  # the ports of its jobs are not another's
    (folder / "slurm.conf").write_text(text)
    gpus = [f"NodeName={host} Name=gpu File={device}\n" for device in ("/dev/null", "/dev/zero")]  # in name only
    (folder / "gres.conf").write_text("".join(gpus))
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = ["munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock",
             f"--pid-file={folder}/munge/pid", f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed"]
    try:
        for command in (munge, ["slurmctld", "-c"], ["slurmd"]):
            subprocess.run(command, env=environment, check=True)
        for _ in range(600):
            asked = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
            if "idle" in asked.stdout:
                break
            time.sleep(0.1)
        else:
            pytest.fail((folder / "slurmctld.log").read_text()[-2000:])
        yield environment
    finally:
        for name in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
            if (folder / name).exists():
                subprocess.run(["kill", (folder / name).read_text().strip()], check=False)


@pytest.fixture(autouse=True)
def nothing_left(cluster: dict[str, str]) -> Iterator[None]:
    """A test that fails leaves no job behind that the next would wait for."""
    yield
    subprocess.run(["scancel", "--user=root"], env=cluster, check=False)
    until = time.time() + 60
    while subprocess.run(["squeue", "-h"], env=cluster, capture_output=True).stdout and time.time() < until:
        time.sleep(0.1)


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


def tiny(cases: Path, *options: str) -> list[str]:
    """The options of a tiny training on the CPU."""
    return [
        "--device", "cpu", "--model", "improved_unet", "--n-filters", "2", "--data", str(cases), "--window", "48", "64",
        "--batch-size", "8", "--val", "0", *options,
    ]  # fmt: skip


def submit(
    cluster: dict[str, str], clone: Path, cases: Path, name: str, *options: str, sbatch: tuple[str, ...] = ()
) -> str:
    """The number of a job that trains a tiny network on the CPU."""
    command = [
        "sbatch", "--parsable", "--gres=none", "--cpus-per-task=1", *sbatch, str(clone / "jobs" / "unet.job"),
        *tiny(cases, "--test", "0.3", "--name", name, *options),
    ]  # fmt: skip
    return run(cluster, *command)


def run(cluster: dict[str, str], *command: str) -> str:
    """What a command says that must not fail."""
    done = subprocess.run(command, env=cluster, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def state_of(cluster: dict[str, str], job: str) -> str:
    shown = subprocess.run(["scontrol", "show", "job", job], env=cluster, capture_output=True, text=True).stdout
    found = re.search(r"JobState=(\w+)", shown)
    return found[1] if found else ""


def wait_for(cluster: dict[str, str], clone: Path, job: str, seconds: float = 900) -> str:
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
    for _ in range(1800):
        if (clone / "runs" / name / "history.csv").exists():
            return
        assert state_of(cluster, job) in ALIVE, log(clone, job)
        time.sleep(0.1)
    pytest.fail(log(clone, job))


@pytest.fixture(scope="module")
def whole(cluster: dict[str, str], clone: Path, cases: Path) -> dict[str, torch.Tensor]:
    """The weights of a job of 12 epochs that nobody disturbed."""
    job = submit(cluster, clone, cases, "whole", "--epochs", "12")
    assert wait_for(cluster, clone, job) == "COMPLETED", log(clone, job)
    return weights(clone, "whole")


@pytest.fixture(scope="module")
def long(cluster: dict[str, str], clone: Path, cases: Path) -> dict[str, torch.Tensor]:
    """The same after 80 epochs."""
    job = submit(cluster, clone, cases, "long", "--epochs", "80")
    assert wait_for(cluster, clone, job) == "COMPLETED", log(clone, job)
    return weights(clone, "long")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("how", ["signal", "requeue", "preemption"])
def test_a_job_that_is_cut_off_goes_on_as_if_nothing_had_happened(
    cluster: dict[str, str], clone: Path, cases: Path, whole: dict[str, torch.Tensor], how: str
) -> None:
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
    assert same(weights(clone, how), whole)


def test_a_job_survives_ten_hard_kills(
    cluster: dict[str, str], clone: Path, cases: Path, long: dict[str, torch.Tensor]
) -> None:
    """SIGKILL of the training or of the whole job, at random moments, each time submitted again."""
    rng = random.Random(time.time_ns())
    folder = clone / "runs" / "killed"
    for number in range(10):
        before = epochs(folder)
        job = submit(cluster, clone, cases, "killed", "--epochs", "80", "--save-every", "0")
        until = time.time() + 600
        while epochs(folder) <= before and number % 3:  # every third kill may come before there is any progress
            assert time.time() < until and state_of(cluster, job) in ALIVE, log(clone, job)
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.3) if number % 3 else rng.uniform(0, 6))
        while not kill(cluster, job, cases, whole=number % 2 == 1):  # it may not have begun
            if (folder / "results.md").exists():
                break
            assert time.time() < until and state_of(cluster, job) in ALIVE, log(clone, job)
            time.sleep(0.05)
        wait_for(cluster, clone, job)
        if (folder / "results.md").exists():
            break  # the last kill came too late
    job = submit(cluster, clone, cases, "killed", "--epochs", "80", "--save-every", "0")
    assert wait_for(cluster, clone, job) == "COMPLETED", log(clone, job)
    assert number == 9 and same(weights(clone, "killed"), long)
    assert not list(folder.glob("*.part"))


def kill(cluster: dict[str, str], job: str, cases: Path, whole: bool) -> bool:
    """SIGKILL the training of a job, or the whole job; false where there was nothing to kill."""
    if not whole:
        command = ["pkill", "-KILL", "-f", f"unet_training.py.*--data {cases} .*--name killed"]
        return subprocess.run(command).returncode == 0
    listed = subprocess.run(["scontrol", "listpids", job], env=cluster, capture_output=True, text=True).stdout
    pids = re.findall(r"^(\d+)", listed, re.MULTILINE)
    if pids:
        subprocess.run(["kill", "-KILL", *pids], check=False)  # some may have ended meanwhile
    return bool(pids)


def test_a_cancelled_job_saves_and_stays_cancelled(cluster: dict[str, str], clone: Path, cases: Path) -> None:
    job = submit(cluster, clone, cases, "cancelled", "--epochs", "2000")
    until_trained(cluster, clone, job, "cancelled")
    run(cluster, "scancel", job)
    assert wait_for(cluster, clone, job) == "CANCELLED"
    until = time.time() + 30
    while "== cancelled: " not in log(clone, job) and time.time() < until:
        time.sleep(0.1)
    assert "saved at epoch" in log(clone, job) and log(clone, job).count("== job") == 1


def test_a_job_without_progress_is_not_requeued_for_ever(cluster: dict[str, str], clone: Path, cases: Path) -> None:
    job = submit(cluster, clone, cases, "stuck", "--epochs", "2000")
    started = clone / "runs" / "slurm" / f"{job}.run"
    for _ in range(2):  # each time before its first step
        until = time.time() + 600
        while not started.exists():
            assert time.time() < until, log(clone, job)
            time.sleep(0.02)
        started.unlink()
        run(cluster, "scancel", "--batch", "--signal=USR1", job)
    assert wait_for(cluster, clone, job) == "FAILED"
    assert "stopped twice at the same step" in log(clone, job) and log(clone, job).count("== job") == 2


def epochs(folder: Path) -> int:
    """How many epochs a run has behind it."""
    path = folder / "history.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def test_of_two_jobs_with_one_name_the_second_refuses(
    cluster: dict[str, str], clone: Path, cases: Path
) -> None:
    first = submit(cluster, clone, cases, "twice", "--epochs", "2000")
    until_trained(cluster, clone, first, "twice")
    second = submit(cluster, clone, cases, "twice", "--epochs", "2000")
    assert wait_for(cluster, clone, second) == "FAILED" and "is still going on" in log(clone, second)
    before = epochs(clone / "runs" / "twice")
    until = time.time() + 600
    while epochs(clone / "runs" / "twice") <= before:  # the first goes on, undisturbed
        assert time.time() < until and state_of(cluster, first) == "RUNNING", log(clone, first)
        time.sleep(0.1)


def test_an_array_of_folds_ends_in_one_table_that_names_what_is_missing(
    cluster: dict[str, str], clone: Path, cases: Path
) -> None:
    for folds, name in (("0 1 2", "good"), ("0 7", "bad")):
        said = run(
            cluster, "bash", str(clone / "jobs" / "array.sh"), "--fold", folds, "--gres=none", "--cpus-per-task=1",
            str(clone / "jobs" / "unet.job"), *tiny(cases, "--epochs", "1", "--folds", "3"),
        )  # fmt: skip
        array, table = re.findall(r"array (\d+):.*\ntable in runs/slurm/(\d+).log", said)[0]
        state, text = wait_for(cluster, clone, table), log(clone, table)
        if name == "good":
            assert state == "COMPLETED" and "| improved_unet_2 | 6 |" in text, text
        else:
            assert state == "FAILED" and "(fold 1, 2 missing)" in text and "--fold 7 has not begun" in text, text
            assert "fold 7 of 3 does not exist" in log(clone, f"{array}_1")


def losses(clone: Path, name: str) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader((clone / "runs" / name / "history.csv").open())]


def test_two_processes_of_srun_train_as_one_does(cluster: dict[str, str], clone: Path, cases: Path) -> None:
    """ClassicUNet has no batch norm, which on CPUs sees a part of the batch."""
    options = ("--model", "classic_unet", "--n-filters", "4", "--epochs", "4", "--precision", "fp32")
    for name, tasks in (("one", "--ntasks=1"), ("two", "--ntasks=2")):
        job = submit(cluster, clone, cases, name, *options, sbatch=(tasks,))
        assert wait_for(cluster, clone, job) == "COMPLETED", log(clone, job)
        assert log(clone, job).count("| WT |") == 1  # one process speaks
    assert len(losses(clone, "one")) == 4 and losses(clone, "two") == pytest.approx(losses(clone, "one"), rel=1e-4)


SLOW = """
import atexit, glob, os, time
if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    if os.environ.get("SLURM_PROCID") == "0":
        sync = os.fsync
        def fsync(file):
            time.sleep(5 * os.path.exists("{flag}"))
            sync(file)
        os.fsync = fsync
    elif os.environ.get("SLURM_PROCID") == "1":
        def leave():
            open("{flag}.left", "w").write("being saved: " + str(glob.glob("{run}/*.part")))
        atexit.register(leave)
"""


def test_of_two_processes_none_ends_before_the_first_has_saved(
    cluster: dict[str, str], clone: Path, cases: Path, tmp_path: Path
) -> None:
    patch = SLOW.format(flag=tmp_path / "slow", run=clone / "runs" / "slow")  # as for a large model on a slow disk
    (tmp_path / "sitecustomize.py").write_text(patch)
    slow = cluster | {"PYTHONPATH": str(tmp_path)}
    job = submit(slow, clone, cases, "slow", "--epochs", "12", sbatch=("--ntasks=2",))
    until_trained(cluster, clone, job, "slow")
    (tmp_path / "slow").touch()
    run(cluster, "scancel", "--batch", "--signal=USR1", job)
    assert wait_for(cluster, clone, job) == "COMPLETED", log(clone, job)
    assert log(clone, job).count("== job") == 2 and "to be continued: SIGUSR1: saved at epoch" in log(clone, job)
    assert (tmp_path / "slow.left").read_text() == "being saved: []"


def test_data_are_staged_to_a_disk_of_the_node_unless_it_is_full(
    cluster: dict[str, str], clone: Path, cases: Path, tmp_path: Path
) -> None:
    disk, full = tmp_path / "disk", tmp_path / "full"
    disk.mkdir()
    full.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)]).returncode:
        full = Path("/dev/null/no/disk")  # no right to mount one: a place that cannot be written will do
    try:
        for place in (disk, full):
            staged = cluster | {"STAGE": str(place)}
            job = submit(staged, clone, cases, f"stage_{place.name}", "--epochs", "1")
            assert wait_for(cluster, clone, job) == "COMPLETED", log(clone, job)
            assert (f"--cache {place}" in log(clone, job)) == (place == disk), log(clone, job)
            assert ("is the disk full?" in log(clone, job)) == (place == full)
        assert not list(disk.iterdir())  # and nothing is left there
    finally:
        subprocess.run(["umount", str(full)], check=False, capture_output=True)


def test_a_classifier_trains_as_a_job_too(cluster: dict[str, str], clone: Path, tmp_path: Path) -> None:
    job = run(
        cluster, "sbatch", "--parsable", "--gres=none", "--cpus-per-task=1", str(clone / "jobs" / "cnn.job"),
        "--device", "cpu", "--data", str(tree(tmp_path / "heads")), "--image-size", "72", "--epochs", "1",
        "--val", "0", "--name", "images",
    )  # fmt: skip
    assert wait_for(cluster, clone, job) == "COMPLETED", log(clone, job)
    assert (clone / "runs" / "images" / "predictions.csv").exists() and "accuracy" in log(clone, job)


def test_what_cannot_work_fails_in_seconds_and_says_why(cluster: dict[str, str], clone: Path, cases: Path) -> None:
    unknown = submit(cluster, clone, cases, "unknown", "--filters", "3")
    assert wait_for(cluster, clone, unknown) == "FAILED" and "--filters" in log(clone, unknown)
    job = str(clone / "jobs" / "unet.job")
    no_gpu = run(cluster, "sbatch", "--parsable", "--gres=gpu:2", "--cpus-per-task=2", job, "--data", str(cases))
    assert wait_for(cluster, clone, no_gpu) == "FAILED" and "take --device cpu" in log(clone, no_gpu)
    assert "srun --ntasks=2 --ntasks-per-node=2 --cpus-per-task=1 " in log(clone, no_gpu)  # a process for each GPU
    assert not (clone / "runs" / "unknown").exists()


def test_a_folder_that_cannot_be_written_is_named_in_the_record_of_the_job(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(PROJECT / "jobs", tmp_path / "jobs")
    (tmp_path / "runs").touch()  # a file, where a folder is wanted: root may write everywhere else
    sbatch = ("sbatch", "--parsable", "--gres=none", "--cpus-per-task=1")
    job = run(cluster, *sbatch, str(tmp_path / "jobs" / "unet.job"))
    assert wait_for(cluster, tmp_path, job) == "FAILED"
    assert f"{tmp_path}/runs cannot be written" in run(cluster, "scontrol", "show", "job", job)


def test_a_job_without_an_environment_says_how_to_make_one(cluster: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "jobs", tmp_path / "jobs")
    bare = {name: value for name, value in cluster.items() if not name.startswith(("CONDA", "VIRTUAL", "PYTHON"))}
    empty = tmp_path / "bin"  # no python3 in it that has torch
    empty.mkdir()
    for command in ("bash", "sbatch", "squeue", "scontrol", "sed", "dirname", "realpath", "mkdir", "hostname", "date"):
        (empty / command).symlink_to(str(shutil.which(command)))
    sbatch = ("sbatch", "--parsable", "--gres=none", "--cpus-per-task=1")
    job = run(bare | {"PATH": str(empty)}, *sbatch, str(tmp_path / "jobs" / "unet.job"))
    assert wait_for(cluster, tmp_path, job) == "FAILED" and "make .venv/installed" in log(tmp_path, job)
