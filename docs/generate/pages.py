"""The list of generated pages. conf.py calls `write_pages` before Sphinx reads the pages.

This module does not import torch, not even indirectly.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from docs.generate import corpus, metrics, run_folder, settings, sites, states, verb_list
from docs.generate.markdown import table


@dataclass(frozen=True)
class Page:
    """A generated page.

    Attributes:
        name: name of its file, without the suffix.
        summary: one sentence on its content.
        body: function that returns the text below the title and the summary.
    """

    name: str
    title: str
    summary: str
    body: Callable[[], str]


PAGES = (
    Page("verbs", "Verbs", "Every verb of `finetune`, with its arguments and options.", verb_list.body),
    Page(
        "train-settings",
        "Settings of train",
        "Every setting of `finetune train`: name, type, default, allowed values and meaning.",
        settings.train_body,
    ),
    Page(
        "prepare-settings",
        "Settings of prepare",
        "Every setting of `finetune prepare` and of a corpus file.",
        settings.prepare_body,
    ),
    Page(
        "readers", "Readers", "The readers of sources, with their fields and options.", settings.readers_body
    ),
    Page(
        "corpus-format",
        "Corpus folder",
        "The files of a prepared corpus: shards, their columns, and the keys of the manifest.",
        corpus.body,
    ),
    Page(
        "run-folder",
        "Run folder",
        "Every file of a run and of the folder around it: who writes it, and its content.",
        run_folder.body,
    ),
    Page("metrics", "Metrics", "Every metric: its name, unit and meaning.", metrics.body),
    Page(
        "states",
        "States and stop reasons",
        "The states of runs, the reasons to stop, and how attempts and ranks fail.",
        states.states_body,
    ),
    Page("exit-codes", "Exit codes", "The exit codes of `finetune` and of jobs.", states.exit_codes_body),
)


def write_pages(docs: Path) -> None:
    """Write the reference pages and the pages of sites into the folder `docs`."""
    reference = {"index.md": _index()}
    for page in PAGES:
        reference[f"{page.name}.md"] = f"# {page.title}\n\n{page.summary}\n\n{page.body()}"
    _write_folder(docs / "reference", reference)
    _write_folder(docs / "sites" / "profiles", sites.texts())


def _write_folder(folder: Path, texts: dict[str, str]) -> None:
    """Write the pages of a folder, and delete all other pages in it.

    Pages that would not change are not written, so that builds are short.

    Args:
        texts: the pages by file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.md"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.is_file() or path.read_text("utf-8") != text:
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(text, "utf-8")
            temporary.replace(path)


def _index() -> str:
    entries = "\n".join(page.name for page in PAGES)
    rows = [(f"[{page.title}]({page.name}.md)", page.summary) for page in PAGES]
    return (
        "# Reference\n\nThese pages are generated from the code of the version at hand.\n\n"
        + table(("page", "content"), rows)
        + f"\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"
    )
