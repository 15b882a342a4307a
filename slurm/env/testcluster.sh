# source this in an allocation on testcluster. Rendered from conf/cluster/testcluster.yaml: `make cluster-env`
export CUDA_VISIBLE_DEVICES=''
export GLOO_SOCKET_IFNAME=eth0
export OMP_NUM_THREADS=1
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
