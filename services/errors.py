"""One table: what an error means to the outside. The tree itself is in ``learners/errors.py``, the lowest room."""

from __future__ import annotations

from typing import NamedTuple

from millrace.learners.errors import (
    AccessError,
    BadInputError,
    BusyError,
    ConfigError,
    DamageError,
    EndedError,
    LearnerError,
    MillraceError,
    MirrorError,
    MissingPartError,
    NotCountedError,
    NotOfferedError,
    NotProvedError,
    NotReadyError,
    NotServedError,
    OffsetsGoneError,
    OutdatedError,
    OverloadedError,
    PrunedError,
    ReplacedError,
    ScopeError,
    StorageError,
    TooLargeError,
    TooManyRejectedError,
    TooSlowError,
)

FAILED = 1  # the command was understood and could not be done
MISUSED = 2  # the command, the pipeline file or the data handed over was wrong


class Meaning(NamedTuple):
    """How an error looks from outside."""

    exit_code: int
    http: int  # status
    grpc: str  # name of the status code


UNEXPECTED = Meaning(FAILED, 500, "INTERNAL")  # whatever a caller can do nothing about

MEANINGS: dict[type[MillraceError], Meaning] = {
    MillraceError: UNEXPECTED,
    ConfigError: Meaning(MISUSED, 500, "INTERNAL"),
    BadInputError: Meaning(MISUSED, 400, "INVALID_ARGUMENT"),
    TooLargeError: Meaning(MISUSED, 413, "RESOURCE_EXHAUSTED"),  # as gRPC itself calls a message over the limit
    TooSlowError: Meaning(MISUSED, 408, "DEADLINE_EXCEEDED"),
    LearnerError: UNEXPECTED,
    DamageError: Meaning(FAILED, 500, "DATA_LOSS"),
    MissingPartError: Meaning(FAILED, 500, "DATA_LOSS"),
    PrunedError: Meaning(FAILED, 500, "DATA_LOSS"),
    StorageError: Meaning(FAILED, 503, "UNAVAILABLE"),
    OffsetsGoneError: Meaning(FAILED, 500, "DATA_LOSS"),
    ReplacedError: UNEXPECTED,
    EndedError: UNEXPECTED,
    BusyError: Meaning(FAILED, 503, "UNAVAILABLE"),
    TooManyRejectedError: UNEXPECTED,
    NotProvedError: UNEXPECTED,
    NotReadyError: Meaning(FAILED, 503, "UNAVAILABLE"),
    NotServedError: Meaning(FAILED, 404, "NOT_FOUND"),
    NotOfferedError: Meaning(FAILED, 501, "UNIMPLEMENTED"),
    OverloadedError: Meaning(FAILED, 503, "RESOURCE_EXHAUSTED"),
    AccessError: Meaning(FAILED, 401, "UNAUTHENTICATED"),
    ScopeError: Meaning(FAILED, 403, "PERMISSION_DENIED"),
    NotCountedError: UNEXPECTED,
    OutdatedError: UNEXPECTED,
    MirrorError: Meaning(FAILED, 503, "UNAVAILABLE"),
}


def meaning(error: MillraceError) -> Meaning:
    """The row of the nearest class in the table."""
    return next(MEANINGS[kind] for kind in type(error).__mro__ if kind in MEANINGS)


def exit_code(error: MillraceError) -> int:
    """The exit code of the nearest class in the table."""
    return meaning(error).exit_code
