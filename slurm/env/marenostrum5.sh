# source this in an allocation on marenostrum5
# rendered from conf/cluster/marenostrum5.yaml by `make cluster-env`
# community, 2026-11: scripts and notes of users of the ACC partition; users are denied `sinfo`, so its
# limits are not checked
#     qos, cpus_per_rank, gpu_request, site.gpus_per_node, site.cores_per_node, site.max_timeout_min,
#     site.max_nodes, site.queues, site.account_pattern, site.account_example, site.accelerator,
#     site.gpu_memory_gb, site.notes
# community, 2026-11: https://www.bsc.es/supportkc/docs/MareNostrum5/intro (not read again; its examples
# begin with a purge)
#     clean_modules, site.docs, site.login_architecture, site.compute_architecture, site.gpu_architecture
module purge
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export TORCHINDUCTOR_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/inductor"
export TORCH_EXTENSIONS_DIR="/tmp/$USER-$SLURM_JOB_ID/torch-extensions"
export SLURM_EXPORT_ENV=ALL  # pass this environment to ranks, even if SBATCH_EXPORT=NONE was set
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from sbatch
