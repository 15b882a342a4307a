"""Advice on a run that has ended without a result: resume it, retry it, or start a new run."""

from __future__ import annotations

import re
import shlex

from data_prep.shards import Manifest
from finetune.config.train import CHANGEABLE
from finetune.launch.observe import Observed
from finetune.runs import layout
from finetune.runs.folder import RunFolder
from finetune.runs.state import FailureKind, RunState
from finetune.tracking.spool import steps_done

# A key of CHANGEABLE in an error message, with the value that the message recommends, if any.
_KEY = re.compile(rf"(?<![\w.])((?:{'|'.join(CHANGEABLE)})(?:\.\w+)*)(?:=(\w+))?")

# A setting of the job's environment, named in messages on jobs that could not start their ranks.
_JOB_SETTING = re.compile(r"cluster\.(?:host_python|python|modules|setup)\b")


def describe_next_step(status: Observed) -> str:
    """Return advice on a run that has ended without a result, with a command that can be pasted."""
    run = status.run
    if _has_changed_corpus(run):
        return (
            "the corpus has been prepared again since the run started; restore the corpus's old files, "
            f"or start a new run: {_original_command(run)}"
        )
    if _is_mistake(run):
        return _advise_after_mistake(run, status.reason)
    if "memory ran out" in status.reason or "want of host memory" in status.reason:
        return _advise_less_memory(run)
    setting = _JOB_SETTING.search(status.reason)
    if setting and not steps_done(run.path):
        return f"resume with another {setting[0]}: {run.command('resume')} {setting[0]}=…"
    sweep = run.sweep()
    if sweep and status.state != RunState.STOPPED:
        return f"resubmit the failed runs of its sweep: {run.command('retry', sweep)}"
    if run.has_checkpoint:
        return f"resume it: {run.command('resume')}"
    if status.state in (RunState.QUEUED, RunState.CANCELLED) and not steps_done(run.path):
        return f"it has not started; resubmit it: {run.command('retry')}"
    condition = "" if status.state == RunState.STOPPED else "after removing the cause, "
    return f"it has no checkpoint; {condition}start it again: {run.command('retry')}"


def _is_mistake(run: RunFolder) -> bool:
    """Return whether the run failed because of its settings or files, and would fail again."""
    return any(failure.kind == FailureKind.MISTAKE for failure in run.failures())


def _advise_after_mistake(run: RunFolder, reason: str) -> str:
    """Return advice after a mistake: resume with a changed setting, retry, or start a new run."""
    found = _KEY.search(reason)
    if found and found[1] != "cluster":
        return f"resume with another {found[1]}: {run.command('resume')} {found[1]}={found[2] or '…'}"
    signs_of_a_file = ("No such file", "does not exist", "changed since", "cannot be read")
    if any(sign in reason for sign in signs_of_a_file):
        return f"correct this, then start the run again: {run.command('retry')}"
    return f"correct the setting and start a new run: {_original_command(run)}"


def _advise_less_memory(run: RunFolder) -> str:
    """Return advice on a run that ran out of memory and would do so again with the same settings.

    The advice is to resume it, or to start a new run, with settings that need less memory.
    """
    size = run.config().micro_batch_size
    if size > 1:
        return f"resume with less memory: {run.command('resume')} micro_batch_size={max(1, size // 2)}"
    return f"start a new run that needs less memory, as with zero=stage3: {_original_command(run)}"


def _original_command(run: RunFolder) -> str:
    """Return the command that submitted the run, as it was typed."""
    arguments = run.provenance().command or ["finetune", "train", "…"]
    return shlex.join(map(str, arguments))


def _has_changed_corpus(run: RunFolder) -> bool:
    """Return whether the corpus has been prepared again since the run started."""
    recorded = (run.read_json(layout.INPUTS) or {}).get("corpus")
    if recorded is None:
        return False
    try:
        return bool(Manifest.read(run.config().data.corpus_folder).digest != recorded)
    except (OSError, ValueError):
        return False
