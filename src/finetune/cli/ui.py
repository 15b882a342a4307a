"""`finetune ui`: MLflow's user interface on the runs."""

from __future__ import annotations

import os
import sys

from finetune.cli.run_arguments import make_parser, select_runs
from finetune.cli.sync import sync_runs


def ui(arguments: list[str]) -> int:
    """Bring MLflow's database up to date, and become its server."""
    parser = make_parser("ui", "Bring MLflow's database up to date and open its user interface.")
    parser.add_argument("--port", type=int, default=5000, help="TCP port (5000)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)"
    )
    options = parser.parse_args(arguments)
    from finetune.tracking.mlflow_sync import default_uri

    sync_runs(select_runs(options))
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # its workers are for features we do not use
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", default_uri(options.runs_dir)]
    command += ["--host", options.host, "--port", str(options.port)]
    address = f"http://{options.host}:{options.port}"
    print(f"MLflow on {address} (Ctrl-C ends it); after new runs: finetune sync", file=sys.stderr)
    os.execv(sys.executable, command)
