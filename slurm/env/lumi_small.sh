# source this in an allocation on lumi_small
# rendered from conf/cluster/lumi_small.yaml by `make cluster-env`
# documented, 2026-04: https://docs.lumi-supercomputer.eu/runjobs/scheduled-jobs/partitions/ and course
# "Slurm on LUMI" (201)
#     partition, prepare, site.max_timeout_min, site.queues
# documented, 2026-05: LUMI training (python3 is 3.6.15; cray-python) and LUMI AI guide (laifs modules)
#     clean_modules, modules
# documented, 2026-05: LUMI AI guide
#     env, sbatch, cpus_per_rank, gpu_request, site.python_example
# documented, 2026-04: https://docs.lumi-supercomputer.eu (hardware, storage; the cleaning of /scratch is
# not enforced)
#     shared_cache, site.docs, site.accelerator, site.login_architecture, site.compute_architecture,
#     site.gpus_per_node, site.gpu_memory_gb, site.cores_per_node, site.memory_per_node_gb,
#     site.account_pattern, site.account_example, site.account_hint
# documented, 2026-04: https://docs.lumi-supercomputer.eu/runjobs/lumi_env/billing/
#     site.billing, site.billing_per_gpu, site.billing_per_core, site.billing_per_gib
module purge
module load CrayEnv
module load cray-python
module use /appl/local/laifs/modules
module load lumi-aif-singularity-bindings
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
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from sbatch
