# source this in an allocation on idun
# rendered from conf/cluster/idun.yaml by `make cluster-env`
# community, 2026-11: scripts of users and https://www.hpc.ntnu.no/idun
#     partition, cpus_per_rank, gpu_request, gpu_type, clean_modules, shared_cache, site
module purge
[ -d ~/.cache/huggingface ] || export HF_HOME="${HF_HOME:-/cluster/work/$USER/cache/huggingface}"
export APPTAINER_CACHEDIR="${APPTAINER_CACHEDIR:-/cluster/work/$USER/cache/apptainer}"
export SINGULARITY_CACHEDIR="${SINGULARITY_CACHEDIR:-/cluster/work/$USER/cache/apptainer}"
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export TORCHINDUCTOR_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/inductor"
export TORCH_EXTENSIONS_DIR="/tmp/$USER-$SLURM_JOB_ID/torch-extensions"
export SLURM_EXPORT_ENV=ALL  # pass this environment to ranks, even if SBATCH_EXPORT=NONE was set
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from sbatch
