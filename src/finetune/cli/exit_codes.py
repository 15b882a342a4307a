"""The exit codes of `finetune`. This module imports only the standard library."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """An exit code of the command line, with its meaning for the reference page."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> ExitCode:
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    DONE = 0, "the command did what it was asked to do"
    RUN_FAILED = 1, "a run has ended and is not completed, or the command itself crashed"
    WRONG_CALL = 2, "the call, a setting or a file is wrong; one line on stderr names it"
    INTERRUPTED = 130, "Ctrl-C"
