#!/bin/bash
#SBATCH --job-name=lora-20261128-120000-0a1b
#SBATCH --account=nn9999k
#SBATCH --partition=accel
#SBATCH --array=0-2%3
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --mem=480G
#SBATCH --time=1440
#SBATCH --signal=USR2@300
#SBATCH --output=/projects/letters/runs/sweeps/lora-20261128-120000-0a1b/0/points/%a/%A_%a_0_log.out
#SBATCH --open-mode=append
#SBATCH --requeue

# modules; only login shells define the function `module`
type module > /dev/null 2>&1 || { shell_path=$PATH; source /etc/profile; PATH=$shell_path:$PATH; }
module reset > /dev/null 2>&1  # unload the submitting shell's modules

# the job's environment
[ -d ~/.cache/huggingface ] || export HF_HOME="${HF_HOME:-/cluster/work/users/$USER/cache/huggingface}"
export APPTAINER_CACHEDIR="${APPTAINER_CACHEDIR:-/cluster/work/users/$USER/cache/apptainer}"
export SINGULARITY_CACHEDIR="${SINGULARITY_CACHEDIR:-/cluster/work/users/$USER/cache/apptainer}"
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export TORCHINDUCTOR_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/inductor"
export TORCH_EXTENSIONS_DIR="/tmp/$USER-$SLURM_JOB_ID/torch-extensions"
export SLURM_EXPORT_ENV=ALL  # pass this environment to ranks, even if SBATCH_EXPORT=NONE was set
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from sbatch

# the code as it was at submission
export PYTHONPATH=/projects/letters/runs/.code/0123456789ab"${PYTHONPATH:+:$PYTHONPATH}"

# the helper that restarts the run; it runs on the host, outside any container, without packages
type -P /projects/letters/.venv/bin/python >/dev/null || { echo 'error: cluster.python: this node lacks /projects/letters/.venv/bin/python, the Python that submitted the job; set one that it has' >&2; exit 1; }
requeue() {
    /projects/letters/.venv/bin/python -m finetune.job.batch_script "$1" /projects/letters/runs/sweeps/lora-20261128-120000-0a1b/0/points/$SLURM_ARRAY_TASK_ID/.. \
        --max-restarts 20 --on-interrupt requeue --world-size 8 "${@:2}"
}
trap : TERM USR2  # signals that end the ranks must not end this script before its last line
# the job's end time; in an array, SLURM_JOB_ID may be the id of the whole array
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
if [ -z "$SLURM_JOB_END_TIME" ] && end=$(squeue -h -j ${job:-$SLURM_JOB_ID} -o %e) &&
    [ -n "$end" ] && end=$(date -d "$end" +%s); then export SLURM_JOB_END_TIME=$end; fi
requeue begin || exit $(( $? == 64 ? 0 : $? ))  # 64: the run is already complete
requeue guard --script $$ &

# the ranks
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output=/projects/letters/runs/sweeps/lora-20261128-120000-0a1b/0/points/%a/%A_%a_%t_log.out --kill-on-bad-exit=1 --wait=60 \
    /projects/letters/.venv/bin/python -u -m submitit.core._submit /projects/letters/runs/sweeps/lora-20261128-120000-0a1b/0/points/%a
code=$?

# record how the attempt ended, and restart the run if necessary
trap '' TERM USR2  # ignored by child processes, too
requeue end --code $code
