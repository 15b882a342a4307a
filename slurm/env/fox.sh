# source this in an allocation on fox. Rendered from conf/cluster/fox.yaml: `make cluster-env`
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
