# source this in an allocation on ex3
# rendered from conf/cluster/ex3.yaml by `make cluster-env`
# community, 2026-11: scripts of users
#     partition, cpus_per_rank, gpu_request, clean_modules, site
# documented, 2026-11: NVIDIA's table of compute capabilities; pytorch/pytorch#172352 (no sm_70 in default
# builds since torch 2.11)
#     site.gpu_architecture
module purge
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export TORCHINDUCTOR_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/inductor"
export TORCH_EXTENSIONS_DIR="/tmp/$USER-$SLURM_JOB_ID/torch-extensions"
export SLURM_EXPORT_ENV=ALL  # pass this environment to ranks, even if SBATCH_EXPORT=NONE was set
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from sbatch
