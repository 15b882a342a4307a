"""What becomes of a job whose ranks have ended. The batch script runs it after srun:

    eval "$(python -m finetune.launch.requeue RUN_FOLDER/jobs/.. EXIT_CODE_OF_SRUN)"
    exit EXIT_CODE_OF_SRUN

It prints the shell commands that the batch shell then executes (scontrol requeue …), and nothing where the job has ended.
It runs on the job's first node, once an attempt, with Slurm's variables of the job; it must not import torch.
"""
