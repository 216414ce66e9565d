"""Errors of serving, deciding and operating, and one table: what every error means to the outside."""

from __future__ import annotations

from typing import NamedTuple

from millrace.learners.errors import BadInputError, ConfigError, LearnerError, MillraceError, StateDamageError
from millrace.streams.errors import (
    DamageError,
    EndedError,
    FoldTimeoutError,
    MissingPartError,
    OffsetsGoneError,
    PrunedError,
    ReplacedError,
    StorageError,
    TooManyRejectedError,
)


class BusyError(MillraceError):
    """A live process already writes this branch.

    What to do: stop that process, or take the branch from it with ``--take-over``.

    >>> from millrace.services.api import BusyError, example_pipeline
    >>> try:
    ...     print(example_pipeline().learn().read)
    ... except BusyError:
    ...     print("another process learns for us")
    0
    """


class NotProvedError(MillraceError):
    """Verification found something that does not hold.

    What to do: do not promote the version; serve one that holds, and look at what the message names.

    >>> from millrace.services.api import NotProvedError, example_pipeline
    >>> try:
    ...     print([proof.proved for proof in example_pipeline().verify()])
    ... except NotProvedError as error:
    ...     print("do not promote:", error)
    [('main.3',)]
    """


class NotReadyError(MillraceError):
    """There is nothing to answer from yet; ask again.

    What to do: ask again after the seconds of ``Retry-After``; rows with labels must be learned, or a version served, first.

    >>> from millrace.services.api import Field, Label, NotReadyError, Pipeline, example_pipeline
    >>> odd = Pipeline.build("odd", [Field("x")], Label("odd", "boolean"), "ridge", home=example_pipeline().folder)
    >>> try:
    ...     odd.predict([{"x": 1}])
    ... except NotReadyError as error:
    ...     print(error)
    Pipeline odd has learned nothing yet. Call append and learn, then predict.
    """


class NotServedError(MillraceError):
    """A model, a version or a path that is asked for and is not served here.

    What to do: ask for what the message names; ``GET /v2/models/NAME`` says which version answers.
    """


class MethodError(MillraceError):
    """A method of HTTP that a path does not have.

    What to do: use one that the message and the header ``Allow`` name.
    """

    def __init__(self, message: str, allowed: str) -> None:
        """``allowed``: the methods that there are, as ``Allow`` has them."""
        super().__init__(message)
        self.allowed = allowed


class TooLargeError(BadInputError):
    """A request over the limit on its size.

    What to do: send fewer rows at a time.
    """


class NotOfferedError(MillraceError):
    """A call that the protocol has and this endpoint does not answer.

    What to do: give the pipeline what the message names, such as a table ``[labels]``, or do without the call.
    """


class OverloadedError(MillraceError):
    """More is being worked on than may wait; ask again.

    What to do: ask again later, send smaller requests, or start more replicas.
    """


class TooSlowError(BadInputError):
    """A request that did not arrive whole in time.

    What to do: send it again, over a faster way or in smaller parts.
    """


class AccessError(MillraceError):
    """A caller who did not show a token.

    What to do: show one as ``Authorization: Bearer TOKEN``, on gRPC as metadata ``authorization``.
    """


class ScopeError(AccessError):
    """A caller whose token is for something else.

    What to do: show a token whose scopes have ``predict``, or ``label`` for labels.
    """


class OutdatedError(MillraceError):
    """What a plan was made from is no longer so.

    What to do: make a new plan.
    """


class MirrorError(MillraceError):
    """The place that versions are mirrored to cannot be reached, or refuses.

    What to do: start MLflow again or mend ``mlflow.uri``; learning and serving go on meanwhile, and the mirror catches up.
    """


class NotCountedError(MillraceError):
    """A decision that was written to the ledger and does not count, because another came first.

    What to do: look at ``millrace log PIPELINE --ledger``, then decide again.

    >>> from millrace.services.api import NotCountedError, example_pipeline
    >>> try:
    ...     print(example_pipeline().roll_back("wrong labels", "main.3").after)
    ... except NotCountedError:
    ...     print("somebody decided first: look again")
    version main.3
    """


class SwapRefusedError(MillraceError):
    """A draft that an engine did not take; it goes on with the one that it has, unless its message says otherwise.

    What to do: look at what the message names, and serve another version.
    """


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
    StateDamageError: Meaning(FAILED, 500, "DATA_LOSS"),
    DamageError: Meaning(FAILED, 500, "DATA_LOSS"),
    MissingPartError: Meaning(FAILED, 500, "DATA_LOSS"),
    PrunedError: Meaning(FAILED, 500, "DATA_LOSS"),
    StorageError: Meaning(FAILED, 503, "UNAVAILABLE"),
    OffsetsGoneError: Meaning(FAILED, 500, "DATA_LOSS"),
    ReplacedError: UNEXPECTED,
    EndedError: UNEXPECTED,
    BusyError: Meaning(FAILED, 503, "UNAVAILABLE"),
    TooManyRejectedError: UNEXPECTED,
    FoldTimeoutError: UNEXPECTED,
    NotProvedError: UNEXPECTED,
    NotReadyError: Meaning(FAILED, 503, "UNAVAILABLE"),
    NotServedError: Meaning(FAILED, 404, "NOT_FOUND"),
    MethodError: Meaning(FAILED, 405, "UNIMPLEMENTED"),
    NotOfferedError: Meaning(FAILED, 501, "UNIMPLEMENTED"),
    OverloadedError: Meaning(FAILED, 503, "RESOURCE_EXHAUSTED"),
    AccessError: Meaning(FAILED, 401, "UNAUTHENTICATED"),
    ScopeError: Meaning(FAILED, 403, "PERMISSION_DENIED"),
    NotCountedError: UNEXPECTED,
    OutdatedError: UNEXPECTED,
    MirrorError: Meaning(FAILED, 503, "UNAVAILABLE"),
    SwapRefusedError: UNEXPECTED,
}


def meaning(error: MillraceError) -> Meaning:
    """The row of the nearest class in the table."""
    return next(MEANINGS[kind] for kind in type(error).__mro__ if kind in MEANINGS)


def exit_code(error: MillraceError) -> int:
    """The exit code of the nearest class in the table."""
    return meaning(error).exit_code
