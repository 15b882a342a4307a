# source this in an allocation on saga. Rendered from conf/cluster/saga.yaml: `make cluster-env`
export http_proxy=http://proxy.saga:3128/
export https_proxy=http://proxy.saga:3128/
export no_proxy=localhost,127.0.0.1
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
