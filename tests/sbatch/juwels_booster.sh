#!/bin/bash
#SBATCH --job-name=base-20261128-120000-0a1b
#SBATCH --partition=booster
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=12
#SBATCH --gres=gpu:4
#SBATCH --time=1440
#SBATCH --signal=USR2@300
#SBATCH --output=/projects/letters/runs/base-20261128-120000-0a1b/jobs/%j_0_log.out
#SBATCH --open-mode=append
#SBATCH --requeue

# modules; only login shells define the function `module`
type module > /dev/null 2>&1 || { shell_path=$PATH; source /etc/profile; PATH=$shell_path:$PATH; }
module purge > /dev/null 2>&1  # unload the submitting shell's modules

# the job's environment
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export TORCHINDUCTOR_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/inductor"
export TORCH_EXTENSIONS_DIR="/tmp/$USER-$SLURM_JOB_ID/torch-extensions"
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0
export SLURM_EXPORT_ENV=ALL  # pass this environment to ranks, even if SBATCH_EXPORT=NONE was set
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from sbatch

# the code as it was at submission
export PYTHONPATH=/projects/letters/runs/.code/0123456789ab"${PYTHONPATH:+:$PYTHONPATH}"

# the helper that restarts the run; it runs on the host, outside any container, without packages
type -P /projects/letters/.venv/bin/python >/dev/null || { echo 'error: cluster.python: this node lacks /projects/letters/.venv/bin/python, the Python that submitted the job; set one that it has' >&2; exit 1; }
requeue() {
    /projects/letters/.venv/bin/python -m finetune.job.batch_script "$1" /projects/letters/runs/base-20261128-120000-0a1b/jobs/.. \
        --max-restarts 20 --on-interrupt requeue --world-size 4 "${@:2}"
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
srun --unbuffered --output=/projects/letters/runs/base-20261128-120000-0a1b/jobs/%j_%t_log.out --kill-on-bad-exit=1 --wait=60 \
    /projects/letters/.venv/bin/python -u -m submitit.core._submit /projects/letters/runs/base-20261128-120000-0a1b/jobs
code=$?

# record how the attempt ended, and restart the run if necessary
trap '' TERM USR2  # ignored by child processes, too
requeue end --code $code
