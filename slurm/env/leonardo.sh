# source this in an allocation on leonardo. Rendered from conf/cluster/leonardo.yaml: `make cluster-env`
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
