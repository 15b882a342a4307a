"""Shared by all tests: tiny corpora with known documents, and a tiny model's config."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tensors are tiny, and the cores are shared with other tests and ranks

from finetune.runs.folder import RunFolder
from tests.corpora import write_corpus
from tests.models import write_base
from tests.run_folders import make_run_folder

APART = [
    "slurm",
    "distributed",
    "end_to_end",
]  # folders whose tests share what is dear to set up; they take longest


def pytest_configure(config: pytest.Config) -> None:
    """On a machine with GPUs, all tests but those for them run as they do without: ranks on CPUs, as many as
    they like."""
    if config.option.markexpr != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def group(nodeid: str) -> str:
    """Which tests pytest-xdist gives to one process: those of such a folder, or else of a file."""
    file = Path(nodeid.partition("::")[0])
    return file.parent.name if file.parent.name in APART else str(file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first."""
    items.sort(key=lambda item: APART.index(name) if (name := group(item.nodeid)) in APART else len(APART))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    config.option.loadscopereorder = False  # by the number of tests
    return ByGroup(config, log)


@pytest.fixture(scope="session")
def law_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus for the laws: lengths 3-512 and longer than the pack, two sources, two written standards; a
    base beside it."""
    folder = tmp_path_factory.mktemp("corpora")
    write_base(folder / "base")
    write_base(
        folder / "wide", hidden_size=64, intermediate_size=128
    )  # bitsandbytes' 4-bit blocks hold 64 numbers of a row
    return write_corpus(folder / "laws", num_documents=120, longest=512, seed=1)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., RunFolder]:
    """Return `make_run_folder` for the folder `runs` of the test's own."""
    return functools.partial(make_run_folder, tmp_path / "runs")


@pytest.fixture(scope="session")
def real_corpora() -> Path:
    """Real Norwegian text beside the checkout, where a developer has it."""
    folder = Path(__file__).parents[2] / "shared" / "corpora"
    if not folder.is_dir():
        pytest.skip("real corpora (../shared/corpora) are not here")
    return folder
