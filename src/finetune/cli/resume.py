"""`finetune resume`: resubmits a run, which resumes from its newest valid checkpoint."""

from __future__ import annotations

import argparse

from data_prep.user_error import UserError
from finetune.cli.overrides import to_dotlist
from finetune.cli.run_arguments import make_parser, select_runs
from finetune.cli.run_reports import report_runs
from finetune.runs.folder import RunFolder


def resume(arguments: list[str]) -> int:
    """Resubmit a run, optionally with changed settings."""
    parser = make_parser(
        "resume",
        "Resume a run from its newest valid checkpoint. A completed run resumes if it is given more steps.",
    )
    parser.add_argument("run", metavar="RUN", help="run id")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings to change from here on, as cluster.ranks_per_node=2 or max_steps=2000",
    )
    options = parser.parse_args(arguments)
    from finetune.launch import submit

    settings = [options.run, *options.settings]
    options.run = next((word for word in settings if "=" not in word), None)  # settings may precede it
    if options.run is None:
        raise UserError("RUN is missing; `finetune resume --help` lists the arguments")
    settings.remove(options.run)
    try:
        run = RunFolder.find(options.run, options.runs_dir)
    except FileNotFoundError:
        points = select_runs(argparse.Namespace(runs_dir=options.runs_dir, runs=[options.run]))
        raise UserError(
            f"{options.run} is a sweep of {len(points)} runs; resume one of them, or use `finetune retry`"
        ) from None
    submit.resume(run, to_dotlist(settings))
    return report_runs([run])
