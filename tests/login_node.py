"""The command line on a login node, in a Python without the packages of finetune[train]."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# This script runs calls as if only the packages of `pip install finetune` were installed.
LOGIN_NODE = """\
import json, sys
from importlib import metadata
absent = (
    "torch", "deepspeed", "transformers", "peft", "accelerate", "datasets", "mlflow",
    "safetensors", "bitsandbytes",
)
sys.modules.update(dict.fromkeys(absent))
version = metadata.version
metadata.version = lambda name: version(f"no-{name}" if name in absent else name)
from finetune.cli.main import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as ended:
        print("exit", ended.code, flush=True)
"""


def run_on_login_node(*calls: list[str], cwd: Path) -> list[str]:
    """Run calls of the command line in a Python without torch; return the output lines."""
    command = [sys.executable, "-c", LOGIN_NODE, json.dumps(calls)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()
