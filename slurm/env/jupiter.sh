# source this in an allocation on jupiter. Rendered from conf/cluster/jupiter.yaml: `make cluster-env`
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
