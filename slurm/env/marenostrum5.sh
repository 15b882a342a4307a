# source this in an allocation on marenostrum5. Rendered from conf/cluster/marenostrum5.yaml: `make cluster-env`
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
