# What the jobs share. A job sources this file and calls `train SCRIPT OPTIONS...`.
#
# jobs/site.sh, if there is one, is read first: modules, conda (see site.example.sh).
# STAGE=FOLDER in the environment names a node-local disk: each node copies the decoded data there and reads them there.

set -uo pipefail
repository=$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")
cd "$repository" || exit 2
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
if ! { mkdir -p runs/slurm && : >>"runs/slurm/$job.log"; }; then # there is no log to say it in: `scontrol show job` will
    scontrol update JobId="$SLURM_JOB_ID" Comment="error: $repository/runs cannot be written: make it writable"
    exit 2
fi
exec >>"runs/slurm/$job.log" 2>&1
echo "== job $job on $(hostname -s), $(date '+%F %T'), start ${SLURM_RESTART_COUNT:-0}"

export CONTINUE_MARK="$repository/runs/slurm/$job.continue" # written by a training that was stopped and has saved
export RUN_MARK="$repository/runs/slurm/$job.run"           # written by a training: the folder of its run
before="runs/slurm/$job.before"                             # where it stood at the last stop
KILLED=138                                                  # 128 + SIGUSR1, which nobody waited for

fail() {
    echo "error: $1"
    exit 2
}

read_site() { # clusters' own scripts may use variables that are not set
    set +u
    [ -f jobs/site.sh ] && source jobs/site.sh
    set -u
}

choose_python() {
    if [ -x .venv/bin/python ]; then
        python=.venv/bin/python
    elif [ -n "${CONDA_PREFIX:-}" ] && "$CONDA_PREFIX/bin/python" -c 'import tyro' 2>/dev/null; then
        python=$CONDA_PREFIX/bin/python
    elif python3 -c 'import torch, tyro' 2>/dev/null; then
        python=python3
    else
        fail "no environment with the project in it: run 'make .venv/installed', or activate one in jobs/site.sh"
    fi
}

given() { # the value of an option of the training, `--x v` or `--x=v`; fails where it is not given
    [[ " ${options[*]} " =~ .*\ $1[=\ ]([^\ ]+) ]] && echo "${BASH_REMATCH[1]}"
}

on_each_node() {
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 "$@"
}

stage() { # copy the decoded data to the nodes' own disks; without that, training reads from where they are
    decoded=$(given --cache || echo datasets/cache)
    staged=
    [ -n "${STAGE:-}" ] || return 0
    [ -d "$decoded" ] || { echo "nothing to stage yet: this start makes $decoded, the next one copies it"; return; }
    staged=$STAGE/brain-tumor-mri-$job
    trap unstage EXIT
    if on_each_node mkdir -p -m 700 "$staged" && on_each_node cp -r "$decoded/." "$staged"; then
        options+=(--cache "$staged")
    else
        echo "could not copy $decoded to $staged (is the disk full?): reading from where they are"
        unstage
    fi
}

keep_new() { # SECONDS: what this training had to decode is there for the next, where it is copied in time (0: any)
    local store name
    for store in "$staged"/*/; do
        name=$(basename "$store")
        [ -d "$store" ] && [[ $name != *.part ]] && [ ! -e "$decoded/$name" ] || continue
        rm -rf "$decoded/$name.$job.part" # of a start that was killed
        timeout "$1" cp -r "$store" "$decoded/$name.$job.part" && mv -T "$decoded/$name.$job.part" "$decoded/$name" ||
            rm -rf "$decoded/$name.$job.part" # cut off, or another job was quicker
    done
}

unstage() { # [SECONDS]; this script runs on the first node; a job that is cancelled can reach no other any more
    [ -n "$staged" ] || return 0
    keep_new "${1:-0}"
    rm -rf "$staged"
    [ "$SLURM_JOB_NUM_NODES" -eq 1 ] || on_each_node rm -rf "$staged"
    staged=
}

spread() { # as many processes a node as sbatch was asked for, or one for each GPU: these share the CPUs of the task
    local tasks=${SLURM_NTASKS_PER_NODE:-$((SLURM_NTASKS / SLURM_JOB_NUM_NODES))} gpus=${SLURM_GPUS_ON_NODE:-0}
    local cpus=${SLURM_CPUS_PER_TASK:-1}
    processes=()
    if [ "$gpus" -gt "$tasks" ] && [ "$(given --device)" != cpu ]; then
        cpus=$((tasks * cpus / gpus))
        processes=(--ntasks=$((gpus * SLURM_JOB_NUM_NODES)) --ntasks-per-node="$gpus" --cpus-per-task=$((cpus > 0 ? cpus : 1)))
        [ $cpus -gt 0 ] || processes+=(--overcommit)
    fi
    export OMP_NUM_THREADS=$((cpus > 0 ? cpus : 1))
    export SRUN_CPUS_PER_TASK=$OMP_NUM_THREADS # srun does not take it from the job (since Slurm 22.05)
}

of_task() { # the option that tells the tasks of an array apart; jobs/array.sh sets both variables
    local values=(${ARRAY_VALUES:-})
    echo "${ARRAY_OPTION:---fold} ${values[$1]:-$1}"
}

name_of_task() { # SCRIPT TASK: a folder for each task, where the training's default name does not see to that
    local option value name
    read -r option value <<<"$(of_task "$2")"
    name=$(given --name)
    [ -z "$name" ] && [[ $option =~ ^--(fold|model|n-filters)$ ]] && return
    name=${name:-$(given --model || basename "$1" _training.py)}
    if [ "$option" = --fold ]; then # as utils/gather.py knows the folds of one run
        echo "--name ${name}_fold${value}of$(given --folds || echo 5)"
    else
        echo "--name ${name}_$(tr - _ <<<"${option#--}")_${value//\//_}"
    fi
}

train() {
    local script=$1
    shift
    local step= asked= cancelled= code=0
    trap 'asked=1; kill -USR1 $step 2>/dev/null' USR1 # the end is near: srun passes it on to the training
    options=("$@")
    read_site
    choose_python
    given --device >/dev/null || options+=(--device cuda) # no GPU is an error, not a slow job
    [ -n "${SLURM_ARRAY_TASK_ID:-}" ] &&
        options+=($(name_of_task "$script" "$SLURM_ARRAY_TASK_ID") $(of_task "$SLURM_ARRAY_TASK_ID"))
    rm -f "$CONTINUE_MARK"
    stage
    [ -z "$asked" ] || finish $KILLED
    spread
    echo "== srun ${processes[*]} $python $script ${options[*]}"
    srun --kill-on-bad-exit=1 "${processes[@]}" "$python" "$script" "${options[@]}" &
    step=$!
    [ -z "$asked" ] || kill -USR1 "$step" # while it was starting
    trap 'cancelled=1; kill -USR1 $step 2>/dev/null' TERM # scancel, or Slurm requeues the job by itself
    until wait "$step"; code=$?; [ $code -le 128 ] || ! kill -0 "$step" 2>/dev/null; do :; done
    finish "$code"
}

finish() { # CODE, and `asked` and `cancelled` of `train`
    [ -f "$CONTINUE_MARK" ] || [ -z "$asked" ] || [ "$1" -ne $KILLED ] || echo "SIGUSR1 before the start" >"$CONTINUE_MARK"
    if [ ! -f "$CONTINUE_MARK" ]; then
        [ "$1" -eq 0 ] || rm -f "$RUN_MARK" # what lies in that folder may be of another run
        echo "== ended with code $1"
        exit "$1"
    fi
    if [ -n "$cancelled" ]; then
        echo "== cancelled: $(cat "$CONTINUE_MARK"); submitted again, it goes on from there"
        exit "$1"
    fi
    if cmp -s "$CONTINUE_MARK" "$before"; then
        fail "stopped twice at the same step ($(cat "$before")): not requeued; is the time limit too short?"
    fi
    mv "$CONTINUE_MARK" "$before"
    unstage 60 # of the two minutes that are left
    echo "== to be continued: $(cat "$before")"
    scontrol requeue "$SLURM_JOB_ID" || fail "the job could not be requeued: submit it again, and it goes on from there"
    sleep 60 # Slurm ends this script
    exit "$1"
}

gather() { # one table of what the tasks of an array have left; names those that have left nothing
    read_site
    choose_python
    local runs=() lost=() task code=0
    [ -n "${ARRAY_VALUES:-}" ] || fail "which runs to gather was not said: start the array with jobs/array.sh"
    for task in $(seq 0 $(($(wc -w <<<"$ARRAY_VALUES") - 1))); do
        if [ -f "runs/slurm/${1}_$task.run" ]; then
            runs+=("$(cat "runs/slurm/${1}_$task.run")")
        else
            lost+=("missing: $(of_task "$task") has not begun, or has failed")
        fi
    done
    [ ${#runs[@]} -eq 0 ] || "$python" utils/gather.py "${runs[@]}" || code=$?
    [ ${#lost[@]} -eq 0 ] || { printf '%s\n' "${lost[@]}"; code=1; }
    [ $code -eq 0 ] || echo "what happened stands in runs/slurm/${1}_*.log"
    echo "== ended with code $code"
    exit $code
}
