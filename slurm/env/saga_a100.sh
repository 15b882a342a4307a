# source this in an allocation on saga_a100
# rendered from conf/cluster/saga_a100.yaml by `make cluster-env`
# documented, 2026-07: https://documentation.sigma2.no/jobs/job_types/saga_job_types.html (7 nodes are the
# most of a user)
#     partition, gpu_request, memory_per_node, cpus_per_rank, site.accelerator, site.gpus_per_node,
#     site.cores_per_node, site.memory_per_node_gb, site.max_timeout_min, site.max_nodes, site.queues
# documented, 2026-07: https://documentation.sigma2.no/jobs/job_scripts/array_jobs.html
#     site.max_array_size, clean_modules
# documented, 2026-07: https://documentation.sigma2.no/files_storage/clusters.html (21 to 42 days; a cache
# folder is inferred)
#     shared_cache, site.purge_days
# documented, 2026-07: https://documentation.sigma2.no/jobs/projects_accounting.html
#     site.billing, site.billing_per_gpu, site.billing_per_core, site.billing_per_gib, site.account_pattern,
#     site.account_example, site.account_hint
# documented, 2026-07: https://documentation.sigma2.no/hpc_machines/saga.html
#     env, modules, site.docs, site.login_architecture, site.compute_architecture, site.gpu_memory_gb,
#     site.internet
# documented, 2026-11: NVIDIA's table of compute capabilities
#     site.gpu_architecture
module reset
module --force swap StdEnv Zen2Env
[ -d ~/.cache/huggingface ] || export HF_HOME="${HF_HOME:-/cluster/work/users/$USER/cache/huggingface}"
export APPTAINER_CACHEDIR="${APPTAINER_CACHEDIR:-/cluster/work/users/$USER/cache/apptainer}"
export SINGULARITY_CACHEDIR="${SINGULARITY_CACHEDIR:-/cluster/work/users/$USER/cache/apptainer}"
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export TORCHINDUCTOR_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/inductor"
export TORCH_EXTENSIONS_DIR="/tmp/$USER-$SLURM_JOB_ID/torch-extensions"
export http_proxy=http://proxy.saga:3128/
export https_proxy=http://proxy.saga:3128/
export no_proxy=localhost,127.0.0.1
export SLURM_EXPORT_ENV=ALL  # pass this environment to ranks, even if SBATCH_EXPORT=NONE was set
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from sbatch
