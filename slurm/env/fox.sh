# source this in an allocation on fox
# rendered from conf/cluster/fox.yaml by `make cluster-env`
# community, 2026-11: scripts of users
#     partition, nodes, cpus_per_rank, memory_per_node, gpu_request, clean_modules, site
module purge
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export TORCHINDUCTOR_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/inductor"
export TORCH_EXTENSIONS_DIR="/tmp/$USER-$SLURM_JOB_ID/torch-extensions"
export SLURM_EXPORT_ENV=ALL  # pass this environment to ranks, even if SBATCH_EXPORT=NONE was set
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from sbatch
