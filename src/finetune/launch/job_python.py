"""The Python that a job starts: the one that submits it, one of the site, or one in a container.

A Python of hpc-container-wrapper (Tykky, lumi-container-wrapper) is found as follows. The wrapper
installs shell scripts such as PREFIX/bin/python. They start a container and run the Python of its
image, at a path such as /LUMI_TYKKY_ab12c that exists only inside. In the container, PREFIX/_bin is
mounted over PREFIX/bin, so that PREFIX/bin/python is a link to that Python. The link thus shows
which wrapper started this process. Outside the container, the same path is the shell script, which
is the command for jobs.
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
# This folder exists only inside containers of Apptainer and Singularity. The variables above do not
# show that: a job outside of containers may have inherited them.
_INSIDE = Path("/.singularity.d")


def job_python(setting: str | None, key: str = "cluster.python") -> str:
    """Return the shell command of the Python that a job starts.

    Args:
        setting: the command that the user has set; None: the Python of this process.
        key: the setting's name, for the message.

    Raises:
        UserError: nothing is set, and this process runs in a container that was not started by a
            known wrapper.
    """
    if setting:
        return setting
    image = container()
    python = sys.executable if image is None else wrapper_of_this_python()
    if python is None:
        raise UserError(
            f"{key}: must be set, because this command runs in container {image}, and jobs start outside of "
            f"it; set the command that starts the container's Python, such as "
            f"{key}='apptainer exec {image} python3'"
        )
    return shlex.quote(python)


def host_python(cluster: ClusterConfig) -> str:
    """Return the command of a Python on the nodes that runs outside containers.

    It may lack our dependencies.
    """
    if uses_host_python(cluster):
        return cluster.host_python
    return shlex.quote(sys.executable)


def uses_host_python(cluster: ClusterConfig) -> bool:
    """Return whether cluster.host_python is used, as the job's Python may be in a container."""
    return cluster.python is not None or container() is not None


def check_line(key: str = "cluster.python") -> str:
    """Return a line of a batch script that ends the job if this Python does not exist on its node.

    Args:
        key: the setting that names another Python, for the message.
    """
    python = job_python(None, key)
    message = (
        f"error: {key}: this node lacks {python}, the Python that submitted the job; set one that it has"
    )
    return f"type -P {python} >/dev/null || {{ echo {shlex.quote(message)} >&2; exit 1; }}"


def container() -> str | None:
    """Return the Apptainer or Singularity image that this process runs in; None if in none."""
    if not _INSIDE.is_dir():
        return None
    return next((os.environ[name] for name in _IMAGE if name in os.environ), "(unknown image)")


def wrapper_of_this_python() -> str | None:
    """Return the command that starts this Python from outside its container; None if unknown."""
    started_as = Path(sys.executable)
    for folder in _wrapper_folders():
        # This Python was started by a wrapper, or is a virtual environment on top of one.
        if folder in _linked_folders(started_as):
            return str(started_as)
        for name in ("python3", "python"):
            command = folder / name
            if command.is_symlink() and command.readlink().parent == started_as.parent:
                return str(command)
    return None


def _wrapper_folders() -> Iterator[Path]:
    """Yield the folder PREFIX/bin of each wrapper that may have started this process."""
    for name in _IMAGE:
        image = os.environ.get(name)
        if image:
            yield Path(os.path.normpath(image)).parent / "bin"
    for name in _BINDS:
        for bind in re.findall(r"[^,:]+/_bin:([^,:]+/bin)(?=[,:]|$)", os.environ.get(name, "")):
            yield Path(bind)


def _linked_folders(path: Path) -> list[Path]:
    """Return the folder of a path, and those of the symbolic links' targets that follow from it."""
    folders = [path.parent]
    while path.is_symlink() and len(folders) < 40:
        path = Path(os.path.normpath(path.parent / path.readlink()))
        folders.append(path.parent)
    return folders
