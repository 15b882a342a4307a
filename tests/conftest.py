"""Fixtures shared by all tests, the order of tests, and their distribution over processes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# tensors are tiny, and other tests and ranks share the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

from finetune.runs.folder import RunFolder
from tests.corpora import write_corpus
from tests.models import write_base
from tests.run_folders import make_run_folder

# The tests of each folder share an expensive setup and run in one process. They take longest.
GROUPED_FOLDERS = ["slurm", "distributed", "end_to_end"]


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from tests unless pytest runs with `-m cuda`."""
    if config.option.markexpr != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def group(nodeid: str) -> str:
    """Return the group of a test; pytest-xdist runs a group in one process.

    The group is the test's folder if GROUPED_FOLDERS contains it, otherwise the test's file.
    """
    file = Path(nodeid.partition("::")[0])
    return file.parent.name if file.parent.name in GROUPED_FOLDERS else str(file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of GROUPED_FOLDERS first, because they take longest."""
    order = {name: index for index, name in enumerate(GROUPED_FOLDERS)}
    items.sort(key=lambda item: order.get(group(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    config.option.loadscopereorder = False  # True would sort groups by size
    return ByGroup(config, log)


@pytest.fixture(scope="session")
def law_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a corpus and two base models beside it; return the corpus folder.

    The corpus has two sources and two written standards. Its documents have 3 to 512 tokens, so
    some are longer than a pack.
    """
    folder = tmp_path_factory.mktemp("corpora")
    write_base(folder / "base")
    # bitsandbytes quantises blocks of 64 numbers of a row
    write_base(folder / "wide", hidden_size=64, intermediate_size=128)
    return write_corpus(folder / "laws", num_documents=120, longest=512, seed=1)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., RunFolder]:
    """Return a function that calls `make_run_folder` for the folder `runs` of this test."""
    return functools.partial(make_run_folder, tmp_path / "runs")


@pytest.fixture(scope="session")
def real_corpora() -> Path:
    """Return the folder of real Norwegian text beside the checkout; skip the test if it is missing."""
    folder = Path(__file__).parents[2] / "shared" / "corpora"
    if not folder.is_dir():
        pytest.skip("there are no real corpora in ../shared/corpora")
    return folder
