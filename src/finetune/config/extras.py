"""Optional packages: checks that they are installed, and messages that name the extra to install.

`pip install finetune` installs the commands that start jobs; `finetune[train]` adds the packages of
a rank, and MLflow; `finetune[tracking]` adds MLflow alone.
"""

from __future__ import annotations

from importlib.util import find_spec

from data_prep.user_error import UserError

TRAIN = ("torch", "deepspeed", "transformers", "accelerate", "peft", "safetensors")
_EXTRA_OF = {**dict.fromkeys(TRAIN, "train"), "datasets": "train", "mlflow": "tracking"}


def find_missing(packages: tuple[str, ...]) -> list[str]:
    """Return the names of the packages that this Python cannot import."""
    return [name for name in packages if find_spec(name) is None]


def check_can_train(is_job: bool) -> None:
    """Raise UserError if the Python that is to start a run lacks packages of finetune[train].

    Args:
        is_job: True if Slurm starts the run; cluster.python can then name another Python.
    """
    lacking = ", ".join(find_missing(TRAIN))
    if not lacking:
        return
    if is_job:
        raise UserError(
            f"cluster.python is missing: jobs would run with this Python, which lacks {lacking}; "
            f"set cluster.python to a Python that has finetune[train], such as a container's, "
            f"or run pip install 'finetune[train]' here"
        )
    raise UserError(
        f"cluster=local: this Python lacks {lacking}; "
        f"run pip install 'finetune[train]', or choose a Slurm profile and set cluster.python"
    )


def check(package: str, action: str) -> None:
    """Raise UserError if this Python lacks a package.

    Args:
        action: the action that needs the package, such as "evaluating a model".
    """
    if find_missing((package,)):
        raise UserError(_describe_missing(package, action))


def explain(fault: ModuleNotFoundError) -> str | None:
    """Return the message for a failed import; None if the module is not part of an extra."""
    package = (fault.name or "").partition(".")[0]
    return _describe_missing(package, "this command") if package in _EXTRA_OF else None


def _describe_missing(package: str, action: str) -> str:
    return (
        f"{action} needs {package}, which this Python lacks; "
        f"run pip install 'finetune[{_EXTRA_OF[package]}]', or use the Python that jobs use"
    )
