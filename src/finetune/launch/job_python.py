"""Determine the command of the Python that a job starts.

It is the command that the user has set (cluster.python), or else the Python of this process.

The second case is difficult if this Python was installed by hpc-container-wrapper (Tykky,
lumi-container-wrapper). Its command is then a shell script, PREFIX/bin/python. The script starts a
container and, in it, a Python at a path such as /LUMI_TYKKY_ab12c/…, which does not exist outside.
So jobs must start the script, but this process often knows only the inner path (sys.executable).

The script is found with a symbolic link. In the container, another folder is mounted over
PREFIX/bin. There, PREFIX/bin/python is not the script but a link to the inner Python.
`wrapper_of_this_python` takes all folders that may be PREFIX/bin from the container's variables,
and looks for the one with a link to the Python of this process.
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
        key: name of that setting, for the error message.

    Raises:
        UserError: `setting` is None, and this process runs in a container, but its Python was not
            installed by hpc-container-wrapper.
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
    """Return the command of a Python that the nodes have outside of containers.

    This Python may lack our dependencies.
    """
    if uses_host_python(cluster):
        return cluster.host_python
    return shlex.quote(sys.executable)


def uses_host_python(cluster: ClusterConfig) -> bool:
    """Return whether jobs need cluster.host_python to run job/batch_script.py.

    They need it if the ranks' Python may be in a container: if cluster.python is set, or this
    process runs in a container. Otherwise, the Python of this process runs job/batch_script.py.
    """
    return cluster.python is not None or container() is not None


def check_line(key: str = "cluster.python") -> str:
    """Return a batch script's line that ends the job if its node lacks the Python of this process.

    Args:
        key: the setting with which a user can choose another Python, for the error message.
    """
    python = job_python(None, key)
    message = (
        f"error: {key}: this node lacks {python}, the Python that submitted the job; set one that it has"
    )
    return f"type -P {python} >/dev/null || {{ echo {shlex.quote(message)} >&2; exit 1; }}"


def container() -> str | None:
    """Return the Apptainer or Singularity image that this process runs in; None if it runs in none."""
    if not _INSIDE.is_dir():
        return None
    return next((os.environ[name] for name in _IMAGE if name in os.environ), "(unknown image)")


def wrapper_of_this_python() -> str | None:
    """Return the command that starts this Python from outside its container; None if unknown.

    The module's docstring explains the search.
    """
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
    """Return the folder of each path in a chain of symbolic links.

    Args:
        path: the first path of the chain. If it is not a link, it is the only one.
    """
    folders = [path.parent]
    while path.is_symlink() and len(folders) < 40:
        path = Path(os.path.normpath(path.parent / path.readlink()))
        folders.append(path.parent)
    return folders
