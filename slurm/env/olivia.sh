# source this in an allocation on olivia
# rendered from conf/cluster/olivia.yaml by `make cluster-env`
# documented, 2026-07: https://documentation.sigma2.no/jobs/job_types/olivia_job_types.html
#     partition, gpu_request, cpus_per_rank, prepare, site.accelerator, site.gpus_per_node, site.cores_per_node,
#     site.memory_per_node_gb, site.max_timeout_min, site.queues
# documented, 2026-05:
# https://documentation.sigma2.no/code_development/guides/pytorch_olivia/PyTorchMultiNode.html and
# https://documentation.sigma2.no/hpc_machines/olivia/nccl_apptainer.html
#     memory_per_node, modules, clean_modules, env_many_nodes
# documented, 2026-05: https://documentation.sigma2.no/hpc_machines/olivia/nccl.html (the 13 variables;
# NCCL_PROTO as a second guard)
#     env
# documented, 2026-07: https://documentation.sigma2.no/hpc_machines/olivia/software_stack.html
#     site.docs, site.login_architecture, site.compute_architecture, site.gpu_memory_gb, site.gpu_architecture,
#     site.internet, site.python_example, env.http_proxy, env.https_proxy
# documented, 2026-07: https://documentation.sigma2.no/files_storage/clusters.html (files go after 21 to 42
# days; a cache folder is inferred)
#     node_local, shared_cache, site.purge_days
# documented, 2026-07: https://documentation.sigma2.no/jobs/projects_accounting.html
#     site.billing, site.billing_per_gpu, site.account_pattern, site.account_hint
# community, 2025-10: NbAiLab/NB-Olivia-tutorial (nn30001k is a project there)
#     site.account_example, env.no_proxy
# documented, 2026-07: https://documentation.sigma2.no/jobs/job_scripts/array_jobs.html
#     site.max_array_size
module reset
module load NRIS/GPU
module load NCCL/2.26.6-GCCcore-14.2.0-CUDA-12.8.0
[ -d ~/.cache/huggingface ] || export HF_HOME="${HF_HOME:-/cluster/work/projects/$SLURM_JOB_ACCOUNT/$USER/cache/huggingface}"
export APPTAINER_CACHEDIR="${APPTAINER_CACHEDIR:-/cluster/work/projects/$SLURM_JOB_ACCOUNT/$USER/cache/apptainer}"
export SINGULARITY_CACHEDIR="${SINGULARITY_CACHEDIR:-/cluster/work/projects/$SLURM_JOB_ACCOUNT/$USER/cache/apptainer}"
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export TORCHINDUCTOR_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/inductor"
export TORCH_EXTENSIONS_DIR="/tmp/$USER-$SLURM_JOB_ID/torch-extensions"
export NCCL_PROTO='^LL128'
export HSA_FORCE_FINE_GRAIN_PCIE=1
export FI_MR_CACHE_MONITOR=userfaultfd
export FI_CXI_DISABLE_HOST_REGISTER=1
export FI_CXI_DEFAULT_CQ_SIZE=131072
export FI_CXI_RDZV_PROTO=alt_read
export FI_CXI_RDZV_EAGER_SIZE=0
export FI_CXI_RDZV_THRESHOLD=0
export FI_CXI_RDZV_GET_MIN=0
export FI_CXI_DEFAULT_TX_SIZE=2048
export FI_CXI_RX_MATCH_MODE=hybrid
export NCCL_CROSS_NIC=1
export NCCL_NET_GDR_LEVEL=PHB
export NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3
export GLOO_SOCKET_IFNAME=hsn0
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
export http_proxy=http://10.63.2.48:3128/
export https_proxy=http://10.63.2.48:3128/
export no_proxy=localhost,127.0.0.1,.local
if [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ]; then
    export NCCL_NET='AWS Libfabric'
    export FI_PROVIDER=cxi
    export APPTAINER_BIND="$EBROOTLIBFABRIC/lib:/opt/libfabric/lib,$EBROOTNCCL:/opt/nccl,$EBROOTAWSMINOFIMINNCCL/lib:/opt/aws-ofi-nccl/lib,/usr/lib64"
    export APPTAINERENV_LD_LIBRARY_PATH="/opt/libfabric/lib:/opt/nccl/lib:/opt/aws-ofi-nccl/lib:/usr/lib64:\$LD_LIBRARY_PATH"
fi
export SLURM_EXPORT_ENV=ALL  # pass this environment to ranks, even if SBATCH_EXPORT=NONE was set
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from sbatch
