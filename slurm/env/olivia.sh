# source this in an allocation on olivia. Rendered from conf/cluster/olivia.yaml: `make cluster-env`
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
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
if [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ]; then
    export NCCL_NET='AWS Libfabric'
fi
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
