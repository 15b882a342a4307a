"""The command that helps after a run has ended without a result: to resume, to retry, or a new run with
another setting."""

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

# A key of CHANGEABLE in an error, perhaps with the value that the error recommends.
_KEY = re.compile(rf"(?<![\w.])((?:{'|'.join(CHANGEABLE)})(?:\.\w+)*)(?:=(\w+))?")

# in the remedy of a job that never came to train
_OF_THE_JOB = re.compile(r"cluster\.(?:host_python|python|modules|setup)\b")


def what_helps(one: Observed) -> str:
    """Return what to do about a run that has ended without a result, with a command that can be pasted."""
    run = one.run
    if _has_another_corpus(run):
        return f"its corpus was prepared anew since: put the old files back, or start a new run: {_original_command(run)}"
    if _is_mistake(run):
        return _after_mistake(run, one.reason)
    if "memory ran out" in one.reason or "want of host memory" in one.reason:
        return _with_less_memory(run)
    place = _OF_THE_JOB.search(one.reason)
    if place and not steps_done(run.path):
        return f"go on with another {place[0]}: {run.command('resume')} {place[0]}=…"
    sweep = run.sweep()
    if sweep and one.state != RunState.STOPPED:
        return f"submit again what failed of its sweep: {run.command('retry', sweep)}"
    if run.has_checkpoint:
        return f"go on: {run.command('resume')}"
    if one.state in (RunState.QUEUED, RunState.CANCELLED) and not steps_done(run.path):
        return f"it has not begun; submit it again: {run.command('retry')}"
    cause = "" if one.state == RunState.STOPPED else "once the cause is removed, "
    return f"it saved no checkpoint; {cause}start it again: {run.command('retry')}"


def _is_mistake(run: RunFolder) -> bool:
    """Whether it failed of what the user asked for, which it would do again."""
    return any(failure.kind == FailureKind.MISTAKE for failure in run.failures())


def _after_mistake(run: RunFolder, reason: str) -> str:
    """Return what helps against a mistake: some settings of a run may change, for the others it takes a new
    run."""
    found = _KEY.search(reason)
    if found and found[1] != "cluster":
        return f"go on with another {found[1]}: {run.command('resume')} {found[1]}={found[2] or '…'}"
    if any(
        word in reason for word in ("No such file", "does not exist", "have changed since", "cannot be read")
    ):
        return f"once that is put right: {run.command('retry')}"
    return f"start a new run with that changed: {_original_command(run)}"


def _with_less_memory(run: RunFolder) -> str:
    """Return how to go on with less memory; with the settings as they are it would run out again."""
    size = run.config().micro_batch_size
    if size > 1:
        return f"go on with less memory: {run.command('resume')} micro_batch_size={max(1, size // 2)}"
    return f"start a new run that needs less memory, as with zero=stage3: {_original_command(run)}"


def _original_command(run: RunFolder) -> str:
    """Return the command that submitted the run, as it was typed."""
    words = run.provenance().command or ["finetune", "train", "…"]
    return shlex.join(map(str, words))


def _has_another_corpus(run: RunFolder) -> bool:
    noted = (run.read_json(layout.INPUTS) or {}).get("corpus")
    if noted is None:
        return False
    try:
        return bool(Manifest.read(run.config().data.corpus_folder).digest != noted)
    except (OSError, ValueError):
        return False
