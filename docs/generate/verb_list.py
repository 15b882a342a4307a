"""The page of verbs."""

from __future__ import annotations

import contextlib
import io
import os
from unittest import mock

from finetune.cli import verbs
from generate.markdown import escape, table

HELP_COLUMNS = "92"
SETTINGS_PAGES = {"train": "train-settings", "prepare": "prepare-settings", "resume": "train-settings"}


def verb_help(name: str) -> str:
    """Return what `finetune NAME --help` prints, without the settings of `train` and `prepare`."""
    verb = verbs.find(name)
    assert verb is not None
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": HELP_COLUMNS}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        verb.run(["--help"])
    return printed.getvalue().partition("\nSettings, ")[0].strip()


def body() -> str:
    """Return a table of all verbs, and a section on each."""
    names = [verb.name for verb in verbs.VERBS]
    summaries = [row.summary for row in verbs.reference_rows()]
    rows = [(f"[`{name}`](#{name})", escape(summary)) for name, summary in zip(names, summaries, strict=True)]
    return table(("verb", "what it does"), rows) + "\n" + "\n".join(_section(name) for name in names)


def _section(name: str) -> str:
    text = f"## {name}\n\n```text\n{verb_help(name)}\n```\n"
    if name in SETTINGS_PAGES:
        text += f"\nAll settings: [{SETTINGS_PAGES[name]}]({SETTINGS_PAGES[name]}.md).\n"
    return text
