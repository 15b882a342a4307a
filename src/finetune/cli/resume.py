"""`finetune resume`: goes on with a run, from its newest checkpoint that verifies."""

from __future__ import annotations

import argparse

from data_prep.user_error import UserError
from finetune.cli.overrides import to_dotlist
from finetune.cli.run_arguments import make_parser, select_runs
from finetune.cli.run_reports import report_runs
from finetune.runs.folder import RunFolder


def resume(arguments: list[str]) -> int:
    """Submit a run again, with settings that change from now on."""
    options_of = make_parser(
        "resume",
        "Go on with a run, from its newest checkpoint that verifies; with more steps, a completed one too.",
    )
    options_of.add_argument("run", help="run id")
    options_of.add_argument(
        "settings", nargs="*", help="what changes from now on, as cluster.ranks_per_node=2 or max_steps=2000"
    )
    options = options_of.parse_args(arguments)
    from finetune.launch import submit

    words = [options.run, *options.settings]
    options.run = next((word for word in words if "=" not in word), None)  # settings may stand before it
    if options.run is None:
        raise UserError("RUN is missing; `finetune resume --help` lists what it takes")
    words.remove(options.run)
    try:
        run = RunFolder.find(options.run, options.runs_dir)
    except FileNotFoundError:
        points = select_runs(argparse.Namespace(runs_dir=options.runs_dir, runs=[options.run]))
        raise UserError(
            f"{options.run} is a sweep of {len(points)} runs: resume one of them, or `finetune retry` it"
        ) from None
    submit.resume(run, to_dotlist(words))
    return report_runs([run])
