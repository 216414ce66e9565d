"""One table: what an error means to the outside. The tree itself is in ``learners/errors.py``, the lowest room."""

from __future__ import annotations

from millrace.learners.errors import (
    AccessError,
    BadInputError,
    BusyError,
    ConfigError,
    DamageError,
    LearnerError,
    MillraceError,
    MissingPartError,
    NotCountedError,
    NotProvedError,
    NotReadyError,
    NotServedError,
    OffsetsGoneError,
    ReplacedError,
    StorageError,
    TooLargeError,
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
    NotReadyError: FAILED,
    NotServedError: FAILED,
    TooLargeError: MISUSED,
    AccessError: FAILED,
    NotCountedError: FAILED,
}

UNEXPECTED = 500  # HTTP: whatever a caller can do nothing about

HTTP_STATUS: dict[type[MillraceError], int] = {
    MillraceError: UNEXPECTED,
    BadInputError: 400,
    AccessError: 401,
    NotServedError: 404,
    TooLargeError: 413,
    NotReadyError: 503,
    StorageError: 503,
}


def exit_code(error: MillraceError) -> int:
    """The exit code of the nearest class in the table."""
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)


def http_status(error: MillraceError) -> int:
    """The HTTP status of the nearest class in the table."""
    return next(HTTP_STATUS[kind] for kind in type(error).__mro__ if kind in HTTP_STATUS)
