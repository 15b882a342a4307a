# source this in an allocation on betzy. Rendered from conf/cluster/betzy.yaml: `make cluster-env`
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
