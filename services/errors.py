"""One table: what an error means to the outside. The tree itself is in ``learners/errors.py``, the lowest room."""

from __future__ import annotations

from millrace.learners.errors import (
    BadInputError,
    BusyError,
    ConfigError,
    DamageError,
    LearnerError,
    MillraceError,
    MissingPartError,
    NotProvedError,
    OffsetsGoneError,
    ReplacedError,
    StorageError,
    TooManyRejectedError,
)

FAILED = 1  # the command was understood and could not be done
MISUSED = 2  # the command, the pipeline file or the data handed over was wrong

EXIT_CODES: dict[type[MillraceError], int] = {
    MillraceError: FAILED,
    ConfigError: MISUSED,
    BadInputError: MISUSED,
    LearnerError: FAILED,
    DamageError: FAILED,
    MissingPartError: FAILED,
    StorageError: FAILED,
    OffsetsGoneError: FAILED,
    ReplacedError: FAILED,
    BusyError: FAILED,
    TooManyRejectedError: FAILED,
    NotProvedError: FAILED,
}


def exit_code(error: MillraceError) -> int:
    """The exit code of the nearest class in the table."""
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)
