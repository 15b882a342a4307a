"""The Python that a job starts: the one that submits, a site's, or one in a container.

hpc-container-wrapper (Tykky, lumi-container-wrapper) installs PREFIX/bin/python and the like: shell scripts
that run a Python of an image at a path such as /LUMI_TYKKY_ab12c, which exists inside only. There
PREFIX/_bin, links into that Python's folder, is mounted over PREFIX/bin. So PREFIX/bin/python is a link that
shows whose wrapper it is, and outside the command for jobs.
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
_INSIDE = Path(
    "/.singularity.d"
)  # in every container of Apptainer or Singularity; the variables alone are handed on to jobs


def job_python(setting: str | None, key: str = "cluster.python") -> str:
    """Return the shell command of the Python that a job starts: what is set, or the Python that submits.

    Raises:
        UserError: nothing is set, and the Python that submits runs in a container where no wrapper of it is
            found.
    """
    if setting:
        return setting
    image = container()
    python = sys.executable if image is None else wrapper_of_this_python()
    if python is None:
        raise UserError(
            f"{key} is missing: this command runs in container {image}, whose Python a job cannot see; "
            f"set the command that starts it, as in {key}='apptainer exec {image} python3'"
        )
    return shlex.quote(python)


def host_python(cluster: ClusterConfig) -> str:
    """Return the shell command of the Python that runs on a node outside of containers, for what needs no
    packages."""
    return cluster.host_python if uses_host_python(cluster) else shlex.quote(sys.executable)


def uses_host_python(cluster: ClusterConfig) -> bool:
    """Return whether the job's Python may be in a container, so that another one is needed outside of it."""
    return cluster.python is not None or container() is not None


def check_line(key: str = "cluster.python") -> str:
    """Return a line of a batch script that ends the job where there is no Python like the one that submitted
    it."""
    python = job_python(None, key)
    message = f"error: {key}: this node has no {python}, with which it was submitted; set the command of one that it has"
    return f"type -P {python} >/dev/null || {{ echo {shlex.quote(message)} >&2; exit 1; }}"


def container() -> str | None:
    """Return the image that this process runs in, as Apptainer and Singularity tell; None outside of their
    containers."""
    if not _INSIDE.is_dir():
        return None
    return next((os.environ[name] for name in _IMAGE if name in os.environ), "(unknown image)")


def wrapper_of_this_python() -> str | None:
    """Return the command outside of the container that starts this Python inside; None where there is none to
    be found."""
    started_as = Path(sys.executable)
    for folder in _wrapper_folders():
        if folder in _folders_on_the_way(
            started_as
        ):  # it was started as a wrapper, or as a virtual environment upon one
            return str(started_as)
        for name in ("python3", "python"):
            command = folder / name
            if command.is_symlink() and command.readlink().parent == started_as.parent:
                return str(command)
    return None


def _wrapper_folders() -> Iterator[Path]:
    """Yield PREFIX/bin of wrappers that may have started this process."""
    for name in _IMAGE:
        if image := os.environ.get(name):
            yield Path(os.path.normpath(image)).parent / "bin"
    for name in _BINDS:
        for bind in re.findall(r"[^,:]+/_bin:([^,:]+/bin)(?=[,:]|$)", os.environ.get(name, "")):
            yield Path(bind)


def _folders_on_the_way(path: Path) -> list[Path]:
    """Return the folder of a path and of each path that links lead to from there."""
    folders = [path.parent]
    while path.is_symlink() and len(folders) < 40:
        path = Path(os.path.normpath(path.parent / path.readlink()))
        folders.append(path.parent)
    return folders
