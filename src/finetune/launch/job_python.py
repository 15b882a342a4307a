"""The Python that a job starts: the submitting one, a site's, or one in a container.

hpc-container-wrapper (Tykky, lumi-container-wrapper) installs PREFIX/bin/python and other shell
scripts, which run an image's Python at a path such as /LUMI_TYKKY_ab12c that exists only inside the
container. Inside, PREFIX/_bin, with links into that Python's folder, is mounted over PREFIX/bin. So
inside, PREFIX/bin/python is a link that shows which wrapper started this Python; outside, the same
path is the command for jobs.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.user_error import UserError
from finetune.config.cluster import ClusterConfig

_IMAGE = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")
_BINDS = ("APPTAINER_BIND", "SINGULARITY_BIND")
# This folder exists only inside containers of Apptainer or Singularity; the variables are also
# inherited by jobs outside.
_INSIDE = Path("/.singularity.d")


def job_python(setting: str | None, key: str = "cluster.python") -> str:
    """Return the shell command of the Python that a job starts: as set, or the submitting one.

    Raises:
        UserError: nothing is set, and the submitting Python runs in a container without a known
            wrapper.
    """
    if setting:
        return setting
    image = container()
    python = sys.executable if image is None else wrapper_of_this_python()
    if python is None:
        raise UserError(
            f"{key}: must be set: this command runs in container {image}, whose Python a job cannot see; "
            f"set the command that starts it, such as {key}='apptainer exec {image} python3'"
        )
    return shlex.quote(python)


def host_python(cluster: ClusterConfig) -> str:
    """Return the command of the Python that runs on a node outside containers, without packages."""
    if uses_host_python(cluster):
        return cluster.host_python
    return shlex.quote(sys.executable)


def uses_host_python(cluster: ClusterConfig) -> bool:
    """Return whether the job's Python may be in a container, so that another is needed outside."""
    return cluster.python is not None or container() is not None


def check_line(key: str = "cluster.python") -> str:
    """Return a line of a batch script that ends the job if the node lacks the submitting Python."""
    python = job_python(None, key)
    message = (
        f"error: {key}: this node has no {python}, the Python that submitted the job; name one that it has"
    )
    return f"type -P {python} >/dev/null || {{ echo {shlex.quote(message)} >&2; exit 1; }}"


def container() -> str | None:
    """Return the Apptainer or Singularity image that this process runs in; None outside."""
    if not _INSIDE.is_dir():
        return None
    return next((os.environ[name] for name in _IMAGE if name in os.environ), "(unknown image)")


def wrapper_of_this_python() -> str | None:
    """Return the command that starts this Python from outside the container; None if unknown."""
    started_as = Path(sys.executable)
    for folder in _wrapper_folders():
        # It was started through a wrapper, or through a virtual environment based on one.
        if folder in _linked_folders(started_as):
            return str(started_as)
        for name in ("python3", "python"):
            command = folder / name
            if command.is_symlink() and command.readlink().parent == started_as.parent:
                return str(command)
    return None


def _wrapper_folders() -> Iterator[Path]:
    """Yield PREFIX/bin of wrappers that may have started this process."""
    for name in _IMAGE:
        image = os.environ.get(name)
        if image:
            yield Path(os.path.normpath(image)).parent / "bin"
    for name in _BINDS:
        for bind in re.findall(r"[^,:]+/_bin:([^,:]+/bin)(?=[,:]|$)", os.environ.get(name, "")):
            yield Path(bind)


def _linked_folders(path: Path) -> list[Path]:
    """Return the folder of a path and of each path that its chain of links leads to."""
    folders = [path.parent]
    while path.is_symlink() and len(folders) < 40:
        path = Path(os.path.normpath(path.parent / path.readlink()))
        folders.append(path.parent)
    return folders
