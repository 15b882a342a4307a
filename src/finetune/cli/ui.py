"""`finetune ui`: MLflow's user interface for the runs."""

from __future__ import annotations

import os
import sys

from finetune.cli.run_arguments import make_parser, select_runs
from finetune.cli.sync import sync_runs


def ui(arguments: list[str]) -> int:
    """Send the runs to MLflow, then replace this process by MLflow's server."""
    parser = make_parser(
        "ui", "Send new metrics of the runs to MLflow's database, then start MLflow's user interface."
    )
    parser.add_argument("--port", type=int, default=5000, help="TCP port (default: 5000)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, reachable from this machine only)",
    )
    options = parser.parse_args(arguments)
    from finetune.tracking.mlflow_sync import default_uri

    sync_runs(select_runs(options))
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # its workers are not used
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", default_uri(options.runs_dir)]
    command += ["--host", options.host, "--port", str(options.port)]
    address = f"http://{options.host}:{options.port}"
    print(f"MLflow at {address} (stop with Ctrl-C); `finetune sync` adds new runs", file=sys.stderr)
    os.execv(sys.executable, command)
