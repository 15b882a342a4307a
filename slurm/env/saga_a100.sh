# source this in an allocation on saga_a100. Rendered from conf/cluster/saga_a100.yaml: `make cluster-env`
module --force swap StdEnv Zen2Env
export http_proxy=http://proxy.saga:3128/
export https_proxy=http://proxy.saga:3128/
export no_proxy=localhost,127.0.0.1
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
