#!/bin/bash
#SBATCH --job-name=lora-20261128-120000-0a1b
#SBATCH --account=project_465000000
#SBATCH --partition=standard-g
#SBATCH --array=0-2%3
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=7
#SBATCH --gpus-per-node=8
#SBATCH --mem=480G
#SBATCH --time=1440
#SBATCH --signal=USR2@300
#SBATCH --output=/projects/letters/runs/sweeps/lora-20261128-120000-0a1b/0/points/%a/%A_%a_0_log.out
#SBATCH --open-mode=append
#SBATCH --requeue

# the job's Python must not import the submitting shell's packages
unset PYTHONHOME PYTHONPATH

# modules; only login shells define the function `module`
type module > /dev/null 2>&1 || { shell_path=$PATH; source /etc/profile; PATH=$shell_path:$PATH; }
module purge > /dev/null 2>&1  # unload the submitting shell's modules
run_module() {
    module "$@" && return
    echo "error: cluster.modules: 'module $*' failed on $(hostname); choose modules that this node has" >&2
    exit 1
}
run_module load CrayEnv
run_module load cray-python
run_module use /appl/local/laifs/modules
run_module load lumi-aif-singularity-bindings

# the job's environment
[ -d ~/.cache/huggingface ] || export HF_HOME="${HF_HOME:-/scratch/$SLURM_JOB_ACCOUNT/$USER/cache/huggingface}"
export APPTAINER_CACHEDIR="${APPTAINER_CACHEDIR:-/scratch/$SLURM_JOB_ACCOUNT/$USER/cache/apptainer}"
export SINGULARITY_CACHEDIR="${SINGULARITY_CACHEDIR:-/scratch/$SLURM_JOB_ACCOUNT/$USER/cache/apptainer}"
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export TORCHINDUCTOR_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/inductor"
export TORCH_EXTENSIONS_DIR="/tmp/$USER-$SLURM_JOB_ID/torch-extensions"
export NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3
export GLOO_SOCKET_IFNAME=hsn0
export NCCL_NET_GDR_LEVEL=3
export MIOPEN_CUSTOM_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/miopen"
export MIOPEN_USER_DB_PATH="/tmp/$USER-$SLURM_JOB_ID/miopen"
export SLURM_EXPORT_ENV=ALL  # pass this environment to ranks, even if SBATCH_EXPORT=NONE was set
unset SRUN_CPUS_PER_TASK  # srun refuses a number of cores together with a mask of cores

# the code as it was at submission
export PYTHONPATH=/projects/letters/runs/.code/0123456789ab"${PYTHONPATH:+:$PYTHONPATH}"

# the helper that restarts the run; it runs on the host, outside any container, without packages
python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' || { echo 'error: cluster.host_python: python3 is missing on this node or older than 3.8; set a newer Python' >&2; exit 1; }
requeue() {
    python3 -m finetune.job.batch_script "$1" /projects/letters/runs/sweeps/lora-20261128-120000-0a1b/0/points/$SLURM_ARRAY_TASK_ID/.. \
        --max-restarts 20 --on-interrupt requeue --world-size 16 "${@:2}"
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
    --cpu-bind=mask_cpu:0x00fe000000000000,0xfe00000000000000,0x0000000000fe0000,0x00000000fe000000,0x00000000000000fe,0x000000000000fe00,0x000000fe00000000,0x0000fe0000000000 \
    singularity exec /appl/local/laifs/containers/lumi-multitorch-full-VERSION.sif python3 -u -m submitit.core._submit /projects/letters/runs/sweeps/lora-20261128-120000-0a1b/0/points/%a
code=$?

# record how the attempt ended, and restart the run if necessary
trap '' TERM USR2  # ignored by child processes, too
requeue end --code $code
