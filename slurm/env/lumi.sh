# source this in an allocation on lumi. Rendered from conf/cluster/lumi.yaml: `make cluster-env`
module use /appl/local/laifs/modules
module load lumi-aif-singularity-bindings
export NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3
export GLOO_SOCKET_IFNAME=hsn0
export NCCL_NET_GDR_LEVEL=3
export MIOPEN_CUSTOM_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/miopen"
export MIOPEN_USER_DB_PATH="/tmp/$USER-$SLURM_JOB_ID/miopen"
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
