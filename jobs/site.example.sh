# Copy to jobs/site.sh (which git ignores) and keep what your cluster needs; it is read on the node, before the training.
# What sbatch itself must know goes on its command line or into its variables, such as
#     export SBATCH_ACCOUNT=my_account SBATCH_PARTITION=gpu

module load python/3.11 cuda         # modules
source activate pytorch              # a conda environment, instead of .venv
export STAGE=${SLURM_TMPDIR:-}       # a disk of the node's own: the decoded data are copied there
