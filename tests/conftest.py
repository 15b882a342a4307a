"""Shared by all tests: tiny corpora with known documents, and a tiny model's config."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.corpora import write_corpus
from tests.models import write_base

APART = ["slurm", "distributed", "end_to_end"]  # folders whose tests share what is dear to set up


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where pytest-xdist shares the tests out to processes: such a folder, or else a file, to one; the longest first."""

    def group(item: pytest.Item) -> str:
        return item.path.parent.name if item.path.parent.name in APART else item.path.stem

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: APART.index(group(item)) if group(item) in APART else len(APART))


@pytest.fixture(scope="session")
def law_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus for the laws: lengths 3-512 and longer than the pack, two sources, two written standards; a base beside it."""
    folder = tmp_path_factory.mktemp("corpora")
    write_base(folder / "base")
    write_base(folder / "wide", hidden_size=64, intermediate_size=128)  # bitsandbytes' 4-bit blocks hold 64 numbers of a row
    return write_corpus(folder / "laws", num_documents=120, longest=512, seed=1)


@pytest.fixture(scope="session")
def real_corpora() -> Path:
    """Real Norwegian text beside the checkout, where a developer has it."""
    folder = Path(__file__).parents[2] / "shared" / "corpora"
    if not folder.is_dir():
        pytest.skip("real corpora (../shared/corpora) are not here")
    return folder
