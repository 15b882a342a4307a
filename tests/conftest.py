"""Fixtures of all tests, the order of tests, and their distribution over processes."""

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

# Folders whose tests share an expensive setup, and so run in one process. They take longest.
GROUPED_FOLDERS = ["slurm", "distributed", "end_to_end"]


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those marked cuda, so that these run as on a machine without."""
    if config.option.markexpr != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def group(nodeid: str) -> str:
    """Return the group of a test, which pytest-xdist runs in one process: its folder if that is in
    GROUPED_FOLDERS, else its file."""
    file = Path(nodeid.partition("::")[0])
    return file.parent.name if file.parent.name in GROUPED_FOLDERS else str(file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the folders that take longest first."""
    order = {name: index for index, name in enumerate(GROUPED_FOLDERS)}
    items.sort(key=lambda item: order.get(group(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    config.option.loadscopereorder = False  # True orders groups by their number of tests
    return ByGroup(config, log)


@pytest.fixture(scope="session")
def law_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a corpus with documents of 3 to 512 tokens (some longer than a pack), two sources and
    two written standards, and base models beside it; return its folder."""
    folder = tmp_path_factory.mktemp("corpora")
    write_base(folder / "base")
    # bitsandbytes' 4-bit blocks hold 64 numbers of a row
    write_base(folder / "wide", hidden_size=64, intermediate_size=128)
    return write_corpus(folder / "laws", num_documents=120, longest=512, seed=1)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., RunFolder]:
    """Return `make_run_folder` for the folder `runs` of this test."""
    return functools.partial(make_run_folder, tmp_path / "runs")


@pytest.fixture(scope="session")
def real_corpora() -> Path:
    """Return the folder of real Norwegian text beside the checkout, or skip the test without it."""
    folder = Path(__file__).parents[2] / "shared" / "corpora"
    if not folder.is_dir():
        pytest.skip("there are no real corpora in ../shared/corpora")
    return folder
