"""A training run on one rank, from a config to a saved result."""

from __future__ import annotations

import logging

from finetune.config.train import TrainConfig
from finetune.distributed import World
from finetune.runs import rank_warnings
from finetune.runs.folder import RunFolder
from finetune.runs.state import FailureKind, RunState
from finetune.runs.stop import StopFlag, StopTraining
from finetune.tracking.spool import Spool
from finetune.training.loop import train_steps
from finetune.training.result import choose_result, save_result, write_summary
from finetune.training.setup import set_up_run, start_or_resume
from finetune.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


def train(config: TrainConfig, folder: RunFolder, world: World, stop_flag: StopFlag) -> RunState:
    """Train or resume the run in `folder`; all ranks call it.

    Args:
        stop_flag: holds requests to stop. It is checked wherever all ranks can stop together.

    Returns:
        COMPLETED after the last step; STOPPED if a user stopped the run; INTERRUPTED after a signal
        of the scheduler or at the end of the job's time. In the last two states, a checkpoint holds
        all finished steps.

    Raises:
        UserError: a setting or file is wrong, or a guard found an error; the message has one line.
    """
    folder.jobs.mkdir(exist_ok=True)

    def record_hang(fault: str) -> None:
        folder.record_failure(world.rank, fault, FailureKind.HANG)

    with (
        rank_warnings.collect(folder.jobs, world.rank),
        Watchdog(folder.stacks(world.rank), config.hang_timeout_min * 60, record_hang) as watchdog,
        Spool(folder.metrics, enabled=world.is_main) as spool,
    ):
        try:
            run = set_up_run(config, folder, world, watchdog, spool, stop_flag)
            progress = start_or_resume(run)
            progress = train_steps(run, progress)
            if not progress.stop_reason:
                result = choose_result(run, progress)
                save_result(run)
                write_summary(run, progress, result)
            run.engine.close()
        except StopTraining as request:
            # Raised during set-up, or by an evaluation before or after the loop. No checkpoint is
            # needed: the newest one already holds all finished steps.
            state = request.reason.state
            cause = stop_flag.describe() or "another rank was asked to stop"
            logger.info("stopping (%s): %s", state, cause)
            return state
    return progress.stop_reason.state
