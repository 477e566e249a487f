"""The shell of the jobs, without Slurm: stand-ins for sbatch, srun and the training write down what they are asked."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import tyro

from training.options import UNetOptions

PROJECT = Path(__file__).parents[1]
# the disk of the first node is that of the job script; each other one has its own under the same name
SRUN = """#!/bin/bash
nodes=1 code=0
while [[ $1 == --* ]]; do
    [[ $1 == --nodes=* ]] && nodes=${1#*=}
    shift
done
"$@" || code=$?
for node in $(seq 2 "$nodes"); do "${@/#$DISK/$DISK/node$node}" || code=$?; done
exit $code
"""
TRAINING = """#!/bin/bash
echo "${@:2}" >asked
[ -d "$DISK" ] && (cd "$DISK" && grep -r . . | sort) >staged
true
"""
SBATCH = """#!/bin/bash
echo "$@" >>submitted
[[ " $* " == *gather.job* && -e no_more_jobs ]] && { echo "sbatch: error: Invalid account" >&2; exit 1; }
wc -l <submitted
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A clone with the stand-ins."""
    shutil.copytree(PROJECT / "jobs", tmp_path / "jobs", ignore=shutil.ignore_patterns("site.sh"))
    for name, text in {"bin/srun": SRUN, "bin/sbatch": SBATCH, ".venv/bin/python": TRAINING}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def run(project: Path, *command: str, **variables: str) -> str:
    """The log of a job that calls a function of common.sh."""
    around = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "STAGE", "ARRAY"))}
    job = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "DISK": str(project / "disk")}
    path = {"PATH": f"{project / 'bin'}:{os.environ['PATH']}"}
    for name in ("asked", "staged", "runs/slurm/1.log"):  # of a call before
        (project / name).unlink(missing_ok=True)
    shell = ["bash", "-c", 'source jobs/common.sh; "$@"', "job", *command]
    subprocess.run(shell, cwd=project, env=around | job | path | variables)
    (log,) = (project / "runs" / "slurm").glob("1*.log")
    return log.read_text()


def train(project: Path, *options: str, **variables: str) -> str:
    log = run(project, "train", "training/unet_training.py", *options, **variables)
    assert "== ended with code 0" in log, log
    return log


def asked(project: Path) -> list[str]:
    """The options that the training was given."""
    return (project / "asked").read_text().split()


@pytest.mark.parametrize(
    ("option", "values", "options", "folders"),
    [
        ("--seed", "0 1", [], ["unet_seed_0", "unet_seed_1"]),
        ("--lr", "1e-3 2e-3", ["--model=classic_unet"], ["classic_unet_lr_1e-3", "classic_unet_lr_2e-3"]),
        ("--weight-decay", "0 1", ["--name=mine"], ["mine_weight_decay_0", "mine_weight_decay_1"]),
        ("--init", "runs/a/A.safetensors", ["--name", "b"], ["b_init_runs_a_A.safetensors"]),
        ("--model", "classic_unet", ["--name", "mine"], ["mine_model_classic_unet"]),
        ("--fold", "0 1", ["--name", "mine"], ["mine_fold0of5", "mine_fold1of5"]),
        ("--fold", "0 1", ["--folds=3", "--name", "mine"], ["mine_fold0of3", "mine_fold1of3"]),
        ("--fold", "0 1", ["--folds", "3"], ["attention_unet_32_fold0of3", "attention_unet_32_fold1of3"]),
        ("--n-filters", "8 16", [], ["attention_unet_8", "attention_unet_16"]),
    ],
)
def test_each_task_of_an_array_has_a_folder_of_its_own(
    project: Path, option: str, values: str, options: list[str], folders: list[str]
) -> None:
    for task, folder in enumerate(folders):
        array = {"ARRAY_OPTION": option, "ARRAY_VALUES": values, "SLURM_ARRAY_JOB_ID": "1"}
        train(project, *options, **array, SLURM_ARRAY_TASK_ID=str(task))
        (project / "runs" / "slurm" / f"1_{task}.log").unlink()
        assert tyro.cli(UNetOptions, args=asked(project)).folder.name == folder
        assert asked(project)[-2:] == [option, values.split()[task]]


def test_the_default_number_of_folds_is_that_of_the_training(project: Path) -> None:
    train(project, "--name", "mine", SLURM_ARRAY_JOB_ID="1", SLURM_ARRAY_TASK_ID="0")
    assert asked(project)[-2:] == ["--fold", "0"] and f"mine_fold0of{UNetOptions.folds}" in asked(project)


@pytest.mark.parametrize("device", [["--device=cpu"], ["--device", "cpu"]])
def test_without_a_gpu_in_both_forms(project: Path, device: list[str]) -> None:
    log = train(project, *device, SLURM_GPUS_ON_NODE="2")
    assert asked(project) == device and "--ntasks" not in log
    assert "--ntasks=2" in train(project, SLURM_GPUS_ON_NODE="2") and asked(project) == ["--device", "cuda"]


@pytest.mark.parametrize("site", ["echo hello $NOBODY_SET_THIS", (PROJECT / "jobs" / "site.example.sh").read_text()])
def test_what_the_site_needs_may_use_variables_that_are_not_set(project: Path, site: str) -> None:
    (project / "jobs" / "site.sh").write_text(site)
    train(project)
    assert "--fold 0 has not begun" in run(project, "gather", "1", ARRAY_VALUES="0")


def test_what_an_older_run_left_is_not_gathered_as_that_of_a_task_that_failed(project: Path) -> None:
    mark = project / "runs" / "slurm" / "1.run"
    for code in ("0", "2"):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text("runs/older\n")
        run(project, "eval", f"cancelled= asked=; finish {code}")
        assert mark.exists() == (code == "0")
    assert "which runs to gather was not said" in run(project, "gather", "1")


def test_every_node_has_the_data_while_it_trains(project: Path) -> None:
    stage = {"STAGE": str(project / "disk"), "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2"}
    assert "nothing to stage yet: this start makes datasets/cache" in train(project, **stage)
    for cache, options in (("datasets/cache", []), ("mine", ["--cache=mine"])):
        (project / cache).mkdir(parents=True)
        (project / cache / "images.npy").write_text(cache)
        log = train(project, *options, **stage)
        files = [f"./{node}brain-tumor-mri-1/images.npy:{cache}" for node in ("", "node2/")]
        assert (project / "staged").read_text().split() == files, log
        assert asked(project)[-2:] == ["--cache", f"{project}/disk/brain-tumor-mri-1"]
        assert not list((project / "disk").rglob("brain*"))


def test_what_a_training_decodes_on_the_node_is_kept_for_the_next(project: Path) -> None:
    cache = project / "datasets" / "cache"
    (cache / "old").mkdir(parents=True)
    decode = 'for store in new half.part old; do mkdir -p "${@: -1}/$store" && echo new >"${@: -1}/$store/x"; done'
    (project / ".venv" / "bin" / "python").write_text(TRAINING + decode)
    train(project, STAGE=str(project / "disk"))
    assert {path.name: len(list(path.iterdir())) for path in cache.iterdir()} == {"new": 1, "old": 0}


def stand_in(project: Path, name: str, text: str) -> None:
    (project / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
    (project / "bin" / name).chmod(0o755)


def test_of_two_trainings_that_decoded_the_same_one_leaves_it_and_none_a_part(project: Path) -> None:
    cache = project / "datasets" / "cache"
    cache.mkdir(parents=True)
    (project / ".venv" / "bin" / "python").write_text(TRAINING + 'mkdir -p "${@: -1}/new"')
    stand_in(project, "cp", '/bin/cp "$@"; [[ $* != */new/* ]] || { mkdir -p datasets/cache/new; touch $_/x; }')
    train(project, STAGE=str(project / "disk"))
    assert [str(path.relative_to(cache)) for path in sorted(cache.rglob("*"))] == ["new", "new/x"]


@pytest.mark.parametrize("when", ["loading modules", "copying", "starting"])
def test_a_signal_before_the_training_listens_brings_the_job_back_once(project: Path, when: str) -> None:
    (project / "datasets" / "cache").mkdir(parents=True)
    stand_in(project, "scontrol", 'echo "$@" >>requeued')
    stand_in(project, "sleep", "")
    if when == "loading modules":
        (project / "jobs" / "site.sh").write_text("kill -USR1 $$")
    elif when == "copying":
        stand_in(project, "cp", 'kill -USR1 "$(ps -o ppid= $PPID)"; /bin/cp "$@"')
    else:
        both = "kill -USR1 $PPID; kill -USR1 $$"  # the job and the training
        stand_in(project, "srun", f'[[ $* != *_training.py* ]] || {{ {both}; }}\n{SRUN}')
    command = ("train", "training/unet_training.py")
    first = run(project, *command, STAGE=str(project / "disk"))
    assert "to be continued: SIGUSR1 before the start" in first and not (project / "asked").exists()
    second = run(project, *command, STAGE=str(project / "disk"))
    assert "stopped twice at the same step" in second and not list((project / "disk").rglob("brain*"))
    assert (project / "requeued").read_text() == "requeue 1\n"


def test_processes_have_the_cpus_of_their_task(project: Path) -> None:
    (project / ".venv" / "bin" / "python").write_text(TRAINING + "echo $SRUN_CPUS_PER_TASK $OMP_NUM_THREADS >asked")
    train(project, SLURM_CPUS_PER_TASK="6")
    assert asked(project) == ["6", "6"]


def test_where_a_node_has_no_room_none_reads_its_own_disk(project: Path) -> None:
    (project / "datasets" / "cache").mkdir(parents=True)
    (project / "disk").mkdir()
    (project / "disk" / "node2").touch()  # no folder can be made there
    log = train(project, STAGE=str(project / "disk"), SLURM_JOB_NUM_NODES="2", SLURM_NTASKS="2")
    assert "is the disk full?" in log and "--cache" not in asked(project)
    assert not list((project / "disk").rglob("brain*"))


def submit(project: Path, *sbatch: str) -> tuple["subprocess.CompletedProcess[str]", list[str]]:
    """What array.sh says, and how sbatch was called."""
    path = {"PATH": f"{project / 'bin'}:{os.environ['PATH']}"}
    command = ["bash", "jobs/array.sh", "--fold", "0 1", *sbatch, "jobs/unet.job", "--folds", "2"]
    done = subprocess.run(command, cwd=project, env=os.environ | path, capture_output=True, text=True)
    return done, (project / "submitted").read_text().splitlines()


def test_both_jobs_of_an_array_have_an_account(project: Path) -> None:
    who = ["--account=me", "--partition", "gpu", "-q", "long", "-Ame"]
    done, (array, gather) = submit(project, who[0], "--gres=none", *who[1:], "--time", "1")
    assert done.stdout.splitlines()[1] == "table in runs/slurm/2.log", done.stderr
    assert array == f"--parsable --array=0-1 {who[0]} --gres=none {' '.join(who[1:])} --time 1 jobs/unet.job --folds 2"
    assert gather == f"--parsable --dependency=afterany:1 {' '.join(who)} jobs/gather.job 1"


def test_an_array_is_named_though_its_table_cannot_be_submitted(project: Path) -> None:
    (project / "no_more_jobs").touch()
    done, _ = submit(project)
    assert done.returncode == 1 and done.stdout.startswith("array 1: --fold 0 1, logs in runs/slurm/1_*.log")
    assert "Invalid account" in done.stderr


@pytest.mark.parametrize("answer", ["echo {jobs}/unet.job --data /old.jobs/a.job b", "echo slurm is busy >&2; exit 1"])
def test_a_job_finds_its_project(project: Path, tmp_path_factory: pytest.TempPathFactory, answer: str) -> None:
    clone = tmp_path_factory.mktemp("home") / "my.jobs" / "clone"
    shutil.copytree(project, clone)
    squeue, copy = clone / "bin" / "squeue", clone.parent / "slurm_script"  # Slurm runs a copy, elsewhere
    squeue.write_text("#!/bin/bash\n" + answer.format(jobs=clone / "jobs") + "\n")
    squeue.chmod(0o755)
    shutil.copy(clone / "jobs" / "unet.job", copy)
    variables = {"PATH": f"{clone / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "1",
                 "SLURM_JOB_NUM_NODES": "1", "SLURM_SUBMIT_DIR": str(clone), "DISK": "/nowhere"}  # fmt: skip
    subprocess.run(["bash", copy, "--epochs", "1"], cwd="/", env=variables)
    assert "--epochs 1" in (clone / "asked").read_text()
