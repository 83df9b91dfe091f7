"""inferctl: reads the command line, runs the verb, and turns its end into an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

from daemon.cli.arguments import parse
from daemon.cli.client import default_url
from daemon.cli.outcome import CommandError, ExitCode, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_INTERRUPTED = 130
"""What shells report for a program ended by Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code (see `ExitCode`).

    Raises:
        SystemExit: the command line was all there was to do, or cannot be followed.
    """
    arguments = parse(sys.argv[1:] if argv is None else argv)
    parser: argparse.ArgumentParser = arguments.parser
    arguments.url = arguments.url or default_url(os.environ.get("INFERD_URL"))
    # Only the verb's own module is imported: start-up is what a person waits for (arguments.py).
    module_name, _, function_name = arguments.runner.partition(":")
    run = getattr(importlib.import_module(module_name), function_name)
    try:
        return int(run(arguments))
    except UsageError as error:
        parser.error(str(error))
    except CommandError as error:
        print(f"inferctl {arguments.verb}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough. Python would complain again while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
