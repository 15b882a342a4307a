"""Run the single rank of a run under Python's debugger (debug=true).

    python -m finetune.job.debug RUN_FOLDER

The debugger stops before the first line; its command `c` continues to the next breakpoint() or
exception.
"""

from __future__ import annotations

import os
import pdb
import sys
import traceback
from pathlib import Path

import submitit

from finetune.job import rank
from finetune.runs.folder import RunFolder
from finetune.runs.stop import StopFlag


def main(path: str) -> None:
    run = RunFolder(Path(path))
    os.environ.setdefault(rank.SHELL_GPUS, os.environ.get("CUDA_VISIBLE_DEVICES", rank.ALL_GPUS))
    # With this variable, submitit.JobEnvironment() describes a job of a single local rank.
    os.environ["SUBMITIT_DEBUG_JOB_ID"] = f"debug-{os.getpid()}"
    run.jobs.mkdir(exist_ok=True)
    with run.lock:
        run.record_start()
        try:
            state = pdb.runcall(rank.train_as_rank, run, submitit.JobEnvironment(), StopFlag(run.stop_file))
            assert state is not None
            run.record_outcome(state)
        except Exception as fault:
            traceback.print_exc()
            run.record_failure(0, f"{type(fault).__name__}: {' '.join(str(fault).split())[:500]}")
            pdb.post_mortem(fault.__traceback__)
            sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
