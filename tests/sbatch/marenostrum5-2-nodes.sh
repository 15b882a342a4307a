#!/bin/bash
#SBATCH --job-name=lora-20261128-120000-0a1b
#SBATCH --account=ehpc123
#SBATCH --qos=acc_ehpc
#SBATCH --array=0-2%3
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=20
#SBATCH --gres=gpu:4
#SBATCH --time=1440
#SBATCH --signal=USR2@300
#SBATCH --output=/projects/letters/runs/sweeps/lora-20261128-120000-0a1b/0/points/%a/%A_%a_0_log.out
#SBATCH --open-mode=append
#SBATCH --requeue

# modules; `module` is a function of login shells, which this one is not
type module > /dev/null 2>&1 || { shell_path=$PATH; source /etc/profile; PATH=$shell_path:$PATH; }
module purge > /dev/null 2>&1  # of the shell that submitted this nothing stays loaded

# the job's environment
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export TORCHINDUCTOR_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/inductor"
export TORCH_EXTENSIONS_DIR="/tmp/$USER-$SLURM_JOB_ID/torch-extensions"
export SLURM_EXPORT_ENV=ALL  # ranks get this environment, also where SBATCH_EXPORT=NONE was set
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not take it from sbatch by itself

# finetune, as it was at submission
export PYTHONPATH=/projects/letters/runs/.code/0123456789ab"${PYTHONPATH:+:$PYTHONPATH}"

# what brings the run back: it runs on the host, outside of a container, without packages
type -P /projects/letters/.venv/bin/python >/dev/null || { echo 'error: cluster.python: this node has no /projects/letters/.venv/bin/python, with which it was submitted; set the command of one that it has' >&2; exit 1; }
requeue() {
    /projects/letters/.venv/bin/python -m finetune.job.batch_script "$1" /projects/letters/runs/sweeps/lora-20261128-120000-0a1b/0/points/$SLURM_ARRAY_TASK_ID/.. \
        --max-restarts 20 --on-interrupt requeue --world-size 8 "${@:2}"
}
trap : TERM USR2  # what ends the ranks must leave this script the time for its last lines
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}  # SLURM_JOB_ID may name the whole array
if [ -z "$SLURM_JOB_END_TIME" ] && end=$(squeue -h -j ${job:-$SLURM_JOB_ID} -o %e) &&
    [ -n "$end" ] && end=$(date -d "$end" +%s); then export SLURM_JOB_END_TIME=$end; fi
requeue begin || exit $(( $? == 64 ? 0 : $? ))  # 64: the run is complete already
requeue guard --script $$ &

# the ranks
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output=/projects/letters/runs/sweeps/lora-20261128-120000-0a1b/0/points/%a/%A_%a_%t_log.out --kill-on-bad-exit=1 --wait=60 \
    /projects/letters/.venv/bin/python -u -m submitit.core._submit /projects/letters/runs/sweeps/lora-20261128-120000-0a1b/0/points/%a
code=$?

# how it ended, and whether it comes back
trap '' TERM USR2  # ignored by what it starts, too
requeue end --code $code
