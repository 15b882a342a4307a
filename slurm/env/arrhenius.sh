# source this in an allocation on arrhenius
# rendered from conf/cluster/arrhenius.yaml by `make cluster-env`
# community, 2026-11: scripts of the first users
#     partition, cpus_per_rank, gpu_request, node_local, site
# community, 2026-05: inferred from Olivia (Sigma2), which has the same nodes and network
#     env, clean_modules, site.notes
module purge
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export TORCHINDUCTOR_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/inductor"
export TORCH_EXTENSIONS_DIR="/tmp/$USER-$SLURM_JOB_ID/torch-extensions"
export NCCL_PROTO='^LL128'
export NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3
export GLOO_SOCKET_IFNAME=hsn0
export SLURM_EXPORT_ENV=ALL  # pass this environment to ranks, even if SBATCH_EXPORT=NONE was set
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from sbatch
