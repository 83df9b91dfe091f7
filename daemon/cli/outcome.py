"""How a verb ends: its exit codes, and the errors that carry one."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the shell is told. Source: 69 and 78 are EX_UNAVAILABLE and EX_CONFIG of sysexits.h."""

    DONE = 0
    FAILED = 1  # refused, or it went wrong
    USAGE = 2  # the command line cannot be understood
    UNREACHABLE = 69  # no daemon answers at the address
    BAD_CONFIG = 78  # the configuration cannot be used


class CommandError(Exception):
    """Base: the verb cannot go on. The message is one or more lines for the operator."""

    exit_code = ExitCode.FAILED


class UsageError(CommandError):
    """An argument cannot be used; the message begins with its name, as argparse's own do."""

    exit_code = ExitCode.USAGE


class Unreachable(CommandError):
    """No daemon answers at the address."""

    exit_code = ExitCode.UNREACHABLE


class Refused(CommandError):
    """The daemon answered, and said no.

    Attributes:
        status: of the HTTP answer.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status
