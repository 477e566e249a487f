#!/bin/bash
# Train several runs that differ in one option as a job array, then gather their results into one table.
#
#     bash jobs/array.sh --fold "0 1 2" jobs/unet.job --folds 3 --model classic_unet
#     bash jobs/array.sh --model "custom_cnn alexnet vgg16" --gres=none jobs/cnn.job --device cpu
#
# Between the values and the job stand options of sbatch; behind the job those of the training. Each task has a folder of
# its own under runs/: where the default name does not hold the option, --name (or else the model) with option and value.
# The table is the end of the second job's log; it is made when all tasks have ended, however they did, and names those
# that left no results. Account, partition and QOS are given to both jobs.

set -euo pipefail
usage="usage: bash jobs/array.sh OPTION \"VALUE VALUE ...\" [SBATCH OPTIONS] JOB [OPTIONS OF THE TRAINING]"
[ $# -ge 3 ] || { echo "$usage" >&2; exit 2; }
export ARRAY_OPTION=$1 ARRAY_VALUES=$2
shift 2
slurm=() both=() before=
while [ $# -gt 0 ] && [[ $1 != *.job ]]; do
    slurm+=("$1")
    if [[ $1 =~ ^(--(account|partition|qos)(=|$)|-[Apq]) || $before =~ ^(--(account|partition|qos)|-[Apq])$ ]]; then
        both+=("$1")
    fi
    before=$1
    shift
done
[ $# -gt 0 ] && [ -f "$1" ] || { echo "error: no job file among the arguments; $usage" >&2; exit 2; }
last=$(($(wc -w <<<"$ARRAY_VALUES") - 1))
array=$(sbatch --parsable --array="0-$last" "${slurm[@]}" "$@")
echo "array $array: $ARRAY_OPTION $ARRAY_VALUES, logs in runs/slurm/${array}_*.log"
table=$(sbatch --parsable --dependency="afterany:$array" "${both[@]}" "$(dirname "$1")/gather.job" "$array")
echo "table in runs/slurm/$table.log"
