"""The list of generated pages. conf.py calls `write_pages` before Sphinx reads its sources.

Nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from docs.generate import corpus, metrics, run_folder, settings, states, verb_list
from docs.generate.markdown import table


@dataclass(frozen=True)
class Page:
    """A generated page: its file's stem, its title, what it holds, and its text below the title."""

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


def write_pages(folder: Path) -> None:
    """Write all reference pages; files that would not change stay, so that builds are short."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"index.md": _index()}
    for page in PAGES:
        texts[f"{page.name}.md"] = f"# {page.title}\n\n{page.summary}\n\n{page.body()}"
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
