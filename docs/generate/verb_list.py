"""The page of verbs."""

from __future__ import annotations

import contextlib
import io
import os
from unittest import mock

from docs.generate.markdown import escape, table
from finetune.cli import verbs

HELP_COLUMNS = "92"
SETTINGS_PAGES = {
    "prepare": "prepare-settings",
    "resume": "train-settings",
    "train": "train-settings",
}


def verb_help(name: str) -> str:
    """Return the output of `finetune NAME --help` without the settings of `train` and `prepare`."""
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
    """Return a table of all verbs, and a section on each of them."""
    rows = [(f"[`{verb.name}`](#{verb.name})", escape(verb.summary)) for verb in verbs.VERBS]
    sections = [_section(verb.name) for verb in verbs.VERBS]
    return "\n".join([table(("verb", "effect"), rows), *sections])


def _section(name: str) -> str:
    text = f"## {name}\n\n```text\n{verb_help(name)}\n```\n"
    if name in SETTINGS_PAGES:
        text += f"\n[All settings of this verb]({SETTINGS_PAGES[name]}.md)\n"
    return text
