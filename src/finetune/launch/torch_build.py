"""The GPUs that the installed torch was built for, read from its files: importing torch takes seconds.

Official builds for CUDA name their toolkit in the version (2.13.0+cu130), and the toolkit decides which older
GPUs they have code for (pytorch/pytorch#157517, #172352). Other builds (a site's module, a container) are not
judged.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

TURING = 75  # the oldest architecture of every build
LAST_WITH_OLDER = (2, 14)  # of the builds for CUDA 12.6
OLDER_BUILD = "install a build for CUDA 12.6: pip install 'torch<2.15' --index-url https://download.pytorch.org/whl/cu126"


@dataclass(frozen=True)
class TorchBuild:
    """An installed torch. `cuda` is the toolkit of an official build, (0, 0) for one without GPUs, None if
    unknown."""

    version: str
    cuda: tuple[int, int] | None

    @classmethod
    def of(cls, version: str) -> TorchBuild:
        """Return the build that a version names, as in 2.13.0+cu130 or 2.13.0+cpu."""
        tag = version.partition("+")[2]
        if tag == "cpu":
            return cls(version, (0, 0))
        toolkit = re.fullmatch(r"cu(\d+)(\d)", tag)
        return cls(version, (int(toolkit[1]), int(toolkit[2])) if toolkit else None)

    @property
    def release(self) -> tuple[int, int]:
        major, minor = re.findall(r"\d+", self.version)[:2]
        return int(major), int(minor)

    @property
    def oldest_architecture(self) -> int:
        """The lowest compute capability, as in 75, that an official build for CUDA has code for."""
        assert self.cuda is not None
        if self.cuda < (12, 8) and self.release <= LAST_WITH_OLDER:
            return 50
        if self.cuda < (13, 0) and self.release <= (2, 10):
            return 70
        return TURING


def installed_torch() -> TorchBuild | None:
    """Return the build of torch that this Python would import, or None if there is none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"""^__version__(?:: \w+)? = ["']([\d.]+[^"']*)["']""", text, re.MULTILINE)
    if found is None:
        return None
    return TorchBuild.of(found[1])


def is_old(architecture: str) -> bool:
    """Return whether some builds of torch lack code for an architecture such as sm_60."""
    found = re.fullmatch(r"sm_(\d+)", architecture)
    return found is not None and int(found[1]) < TURING


def lacks(build: TorchBuild, architecture: str) -> bool | None:
    """Return whether a build has no code for an architecture such as sm_60; None if it is not known."""
    found = re.fullmatch(r"sm_(\d+)", architecture)
    if found is None or build.cuda is None:
        return None
    return build.cuda == (0, 0) or int(found[1]) < build.oldest_architecture
