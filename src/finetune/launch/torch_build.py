"""Find out which GPUs the installed torch supports.

torch is not imported, because that takes seconds. Its version is read from its files. For an
official CUDA build, it contains the version of the CUDA toolkit: 2.13.0+cu130 was built with CUDA
13.0. Both versions determine which older GPUs the build supports (pytorch/pytorch#157517, #172352).
For other builds, such as a site's module, the supported GPUs are unknown.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

TURING = 75  # compute capability of the oldest GPUs that all builds for CUDA support
# The last release of torch whose builds for CUDA 12.6 support GPUs older than Turing.
LAST_WITH_OLDER = (2, 14)
OLDER_BUILD = (
    "install a build for CUDA 12.6: "
    "pip install 'torch<2.15' --index-url https://download.pytorch.org/whl/cu126"
)


@dataclass(frozen=True)
class TorchBuild:
    """An installed torch.

    Attributes:
        version: torch's version, such as 2.13.0+cu130.
        cuda: version of the CUDA toolkit of an official build, such as (13, 0); (0, 0) for a build
            without GPU support; None if unknown.
    """

    version: str
    cuda: tuple[int, int] | None

    @classmethod
    def of(cls, version: str) -> TorchBuild:
        """Return the build that has the given version, such as 2.13.0+cu130 or 2.13.0+cpu."""
        tag = version.partition("+")[2]
        if tag == "cpu":
            return cls(version, (0, 0))
        toolkit = re.fullmatch(r"cu(\d+)(\d)", tag)
        if toolkit is None:
            return cls(version, None)
        return cls(version, (int(toolkit[1]), int(toolkit[2])))

    @property
    def release(self) -> tuple[int, int]:
        major, minor = re.findall(r"\d+", self.version)[:2]
        return int(major), int(minor)

    @property
    def oldest_architecture(self) -> int:
        """The lowest compute capability that this official build supports; 75 means 7.5."""
        assert self.cuda is not None
        if self.cuda < (12, 8) and self.release <= LAST_WITH_OLDER:
            return 50
        if self.cuda < (13, 0) and self.release <= (2, 10):
            return 70
        return TURING


def installed_torch() -> TorchBuild | None:
    """Return this Python's build of torch; None if torch is missing, or its version cannot be read."""
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
    """Return whether a GPU architecture, such as sm_60, is too old for some builds of torch."""
    found = re.fullmatch(r"sm_(\d+)", architecture)
    return found is not None and int(found[1]) < TURING


def lacks_support(build: TorchBuild, architecture: str) -> bool | None:
    """Return True if a build does not support a GPU architecture such as sm_60, False if it does.

    Return None if this is unknown.
    """
    found = re.fullmatch(r"sm_(\d+)", architecture)
    if found is None or build.cuda is None:
        return None
    return build.cuda == (0, 0) or int(found[1]) < build.oldest_architecture
