# source this in an allocation on juwels_booster
# rendered from conf/cluster/juwels_booster.yaml by `make cluster-env`
# community, 2026-08: stas00/ml-engineering
#     master_suffix, env
# community, 2026-08: https://apps.fz-juelich.de/jsc/hps/juwels/ (not read again)
#     partition, cpus_per_rank, gpu_request, clean_modules, site
module purge
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export TORCHINDUCTOR_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/inductor"
export TORCH_EXTENSIONS_DIR="/tmp/$USER-$SLURM_JOB_ID/torch-extensions"
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0
export SLURM_EXPORT_ENV=ALL  # pass this environment to ranks, even if SBATCH_EXPORT=NONE was set
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from sbatch
