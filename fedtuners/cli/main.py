"""The command `fedtuners`: a verb and its arguments."""

import argparse
import sys
from collections.abc import Sequence

from fedtuners.cli import (
    audit,
    chat,
    compare,
    evaluate,
    export,
    federation,
    generate,
    plan,
    report,
    run,
)
from fedtuners.cli.output import sentence

VERBS = {
    "plan": plan,
    "run": run,
    "compare": compare,
    "report": report,
    "evaluate": evaluate,
    "generate": generate,
    "chat": chat,
    "export": export,
    "audit": audit,
    "federation": federation,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse a verb, hand over to its module, and exit with its code.

    What was given and cannot work becomes one sentence on stderr and exit code 2.
    """
    parser = argparse.ArgumentParser(prog="fedtuners", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    for name, module in VERBS.items():
        text = (module.__doc__ or "").splitlines()[0].replace("%", "%%")
        module.add_arguments(
            verbs.add_parser(
                name,
                help=text,
                description=(module.__doc__ or "").replace("%", "%%"),
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    parsed = parser.parse_args(arguments)
    try:
        code = VERBS[parsed.verb].main(parsed)
    except (ValueError, OSError) as error:
        print(f"fedtuners {parsed.verb}: {sentence(error)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)


if __name__ == "__main__":
    main()
