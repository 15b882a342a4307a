# source this in an allocation on idun. Rendered from conf/cluster/idun.yaml: `make cluster-env`
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
