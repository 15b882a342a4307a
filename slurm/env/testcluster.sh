# source this in an allocation on testcluster
# rendered from conf/cluster/testcluster.yaml by `make cluster-env`
# tested, 2026-11-28: slurm/testcluster/cluster.py, and the tests in tests/slurm
#     account, partition, gpu_request, env, prepare, site
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export TORCHINDUCTOR_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/inductor"
export TORCH_EXTENSIONS_DIR="/tmp/$USER-$SLURM_JOB_ID/torch-extensions"
export CUDA_VISIBLE_DEVICES=''
export GLOO_SOCKET_IFNAME=eth0
export OMP_NUM_THREADS=1
export SLURM_EXPORT_ENV=ALL  # pass this environment to ranks, even if SBATCH_EXPORT=NONE was set
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from sbatch
