# source this in an allocation on ex3. Rendered from conf/cluster/ex3.yaml: `make cluster-env`
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
