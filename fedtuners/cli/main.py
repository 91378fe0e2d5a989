"""The command `fedtuners`: a verb and its arguments."""

import argparse
from collections.abc import Sequence

from fedtuners.cli import run

VERBS = {"run": run}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse a verb and hand over to its module."""
    parser = argparse.ArgumentParser(prog="fedtuners", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    for name, module in VERBS.items():
        text = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(verbs.add_parser(name, help=text, description=module.__doc__))
    parsed = parser.parse_args(arguments)
    raise SystemExit(VERBS[parsed.verb].main(parsed))


if __name__ == "__main__":
    main()
