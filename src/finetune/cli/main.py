"""The entry point of `finetune`: finds the verb, and turns a user's mistake into one line. Heavy imports wait
for their verb.

People read stderr; stdout carries only what a script would want, such as the run id.
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

RUN is the id of a run; where several may stand (RUN …), also of a sweep for all its points.

`finetune VERB --help` says more. `finetune train --help` and `finetune prepare --help` list every setting.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb. Exit code: 0 done, 1 a run failed, 2 the call was wrong, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        sys.exit(ExitCode.DONE if arguments else ExitCode.WRONG_CALL)
    if arguments[0] == "--version":
        from finetune import __version__

        print(__version__)
        sys.exit(0)
    verb = verbs.find(arguments[0])
    if verb is None:
        _fail(_describe_unknown_verb(arguments[0]))
    sys.exit(_run_guarded(verb, arguments[1:]))


def usage() -> str:
    """Return what `finetune --help` prints."""
    lines = [f"  {row.usage:<26} {row.summary}" for row in verbs.reference_rows()]
    return USAGE.format(verbs="\n".join(lines))


def _run_guarded(verb: Verb, arguments: list[str]) -> int:
    """Run a verb; a user's mistake becomes one line. FINETUNE_TRACEBACK=1 shows where it came from."""
    if os.environ.get("FINETUNE_TRACEBACK"):
        return verb.run(arguments)
    try:
        return verb.run(arguments)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except ModuleNotFoundError as fault:
        from finetune.config import extras

        if message := extras.explain(fault):
            _fail(message)
        raise
    except Exception as fault:
        from finetune.cli import errors
        from finetune.cli.call import Call

        if not errors.is_mistake(fault):
            raise
        schema = verb.schema or train_schema  # the other verbs read the settings of runs
        _fail(errors.describe_fault(fault, Call(verb.name, arguments, schema())))


def _describe_unknown_verb(typed: str) -> str:
    """Describe a verb that does not exist, with the one that was meant."""
    from finetune.config import suggestions

    names = verbs.names()
    meant = verbs.meant_by(typed.lstrip("-")) or next(iter(suggestions.find_closest(typed, names)), None)
    if "=" in typed or typed.startswith("-"):
        return f"'{typed}': a verb comes first, as in `finetune train {typed}`"
    question = f"did you mean '{meant}'? " if meant else ""
    return f"unknown verb '{typed}'; {question}verbs are {', '.join(names)}"


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(ExitCode.WRONG_CALL)


if __name__ == "__main__":
    main()
