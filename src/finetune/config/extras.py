"""Optional packages: which extra of this package brings a missing module, as one line for the user.

`pip install finetune` brings the commands that start jobs; `finetune[train]` what a rank imports, and MLflow;
`finetune[tracking]` MLflow alone.
"""

from __future__ import annotations

from importlib.util import find_spec

from data_prep.user_error import UserError

TRAIN = ("torch", "deepspeed", "transformers", "accelerate", "peft", "safetensors")
_EXTRA_OF = {**dict.fromkeys(TRAIN, "train"), "datasets": "train", "mlflow": "tracking"}


def missing(packages: tuple[str, ...]) -> list[str]:
    """Return those of the packages that cannot be imported here."""
    return [name for name in packages if find_spec(name) is None]


def check_can_train(is_job: bool) -> None:
    """Check that this Python, which a run is to be started with, can train.

    Args:
        is_job: Slurm starts the run, so that it can be told to use another Python.

    Raises:
        UserError: this Python lacks packages of finetune[train].
    """
    if not (lacking := ", ".join(missing(TRAIN))):
        return
    if is_job:
        raise UserError(
            f"cluster.python is missing: jobs would run with this Python, which lacks {lacking}; set the command of one that "
            f"has finetune[train], as of a container, or install it here: pip install 'finetune[train]'"
        )
    raise UserError(
        f"cluster=local: this Python lacks {lacking}; pip install 'finetune[train]', or choose a Slurm profile and cluster.python"
    )


def check(package: str, what: str) -> None:
    """Raises UserError if a package that `what` needs is not installed here."""
    if missing((package,)):
        raise UserError(_message(package, what))


def explain(fault: ModuleNotFoundError) -> str | None:
    """Return what to install for an import that failed; None if the module is none of our extras'."""
    package = (fault.name or "").partition(".")[0]
    return _message(package, "this command") if package in _EXTRA_OF else None


def _message(package: str, what: str) -> str:
    return (
        f"{what} needs {package}, which this Python lacks: pip install 'finetune[{_EXTRA_OF[package]}]', or run it with the "
        f"Python that jobs use"
    )
