# source this in an allocation on leonardo
# rendered from conf/cluster/leonardo.yaml by `make cluster-env`
# documented, 2025-03: https://docs.hpc.cineca.it/hpc/leonardo.html
#     partition, gpu_request, cpus_per_rank, memory_per_node, clean_modules, shared_cache, site
module purge
[ -d ~/.cache/huggingface ] || export HF_HOME="${HF_HOME:-$WORK/$USER/cache/huggingface}"
export APPTAINER_CACHEDIR="${APPTAINER_CACHEDIR:-$WORK/$USER/cache/apptainer}"
export SINGULARITY_CACHEDIR="${SINGULARITY_CACHEDIR:-$WORK/$USER/cache/apptainer}"
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export TORCHINDUCTOR_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/inductor"
export TORCH_EXTENSIONS_DIR="/tmp/$USER-$SLURM_JOB_ID/torch-extensions"
export SLURM_EXPORT_ENV=ALL  # pass this environment to ranks, even if SBATCH_EXPORT=NONE was set
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from sbatch
