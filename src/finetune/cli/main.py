"""The entry point of `finetune`: it runs the verb and prints a user's mistake as one line.

Heavy modules are imported by the verb that needs them. Messages for people go to stderr; stdout
carries only results that a script reads, such as the run id.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from finetune.cli import verbs
from finetune.cli.exit_codes import ExitCode
from finetune.cli.schemas import train_schema
from finetune.cli.verbs import Verb

USAGE = """\
usage: finetune VERB …

Fine-tune open language models on Norwegian public-sector text.

{verbs}

RUN is the id of a run. RUN … accepts several ids; the id of a sweep selects all runs of the sweep.

`finetune VERB --help` describes one verb; for train and prepare, it lists all settings.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb and exit: 0 success, 1 a run failed, 2 a user's mistake, 130 Ctrl-C."""
    if argv is None:
        argv = sys.argv[1:]
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        sys.exit(ExitCode.DONE if arguments else ExitCode.WRONG_CALL)
    if arguments[0] == "--version":
        from finetune import __version__

        print(__version__)
        sys.exit(0)
    verb = verbs.find(arguments[0])
    if verb is None:
        _exit_with_error(_describe_unknown_verb(arguments[0]))
    sys.exit(_run_verb(verb, arguments[1:]))


def usage() -> str:
    """Return the text of `finetune --help`."""
    lines = [f"  {row.usage:<28} {row.summary}" for row in verbs.reference_rows()]
    return USAGE.format(verbs="\n".join(lines))


def _run_verb(verb: Verb, arguments: list[str]) -> int:
    """Run a verb and return its exit code.

    A user's mistake is printed as one line. If FINETUNE_TRACEBACK is set, its exception is raised
    instead.
    """
    if os.environ.get("FINETUNE_TRACEBACK"):
        return verb.run(arguments)
    try:
        return verb.run(arguments)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except ModuleNotFoundError as fault:
        from finetune.config import extras

        message = extras.explain(fault)
        if not message:
            raise
        _exit_with_error(message)
    except Exception as fault:
        from finetune.cli import errors
        from finetune.cli.call import Call

        if not errors.is_mistake(fault):
            raise
        schema = verb.schema or train_schema  # verbs without settings read the settings of runs
        _exit_with_error(errors.describe_fault(fault, Call(verb.name, arguments, schema())))


def _describe_unknown_verb(typed: str) -> str:
    """Return the error for an unknown verb, with the verb that was probably meant."""
    from finetune.config import suggestions

    if "=" in typed or typed.startswith("-"):
        return f"'{typed}': a verb comes first, as in `finetune train {typed}`"
    names = verbs.names()
    meant = verbs.resolve_synonym(typed) or next(iter(suggestions.find_closest(typed, names)), None)
    question = f"did you mean '{meant}'? " if meant else ""
    return f"unknown verb '{typed}'; {question}the verbs are {', '.join(names)}"


def _exit_with_error(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(ExitCode.WRONG_CALL)


if __name__ == "__main__":
    main()
