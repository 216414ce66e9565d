"""Errors that every room raises, and those of learners. Each room adds its own: ``streams/errors.py``, ``services/errors.py``.

What each one means to the outside (exit code, HTTP status, gRPC status) is the table in ``services/errors.py``. A message says
what happened, to which thing, and what to do. ``docs/reference/errors.md`` is made from the sentences below.
"""


class MillraceError(Exception):
    """Something a user or an operator can act on; its text is one clear sentence and the choices.

    What to do: read the message; it names the thing and the way out.

    >>> from millrace.services.api import MillraceError, example_pipeline
    >>> try:
    ...     example_pipeline().predict([{"x": 1}], version="main.9")
    ... except MillraceError as error:
    ...     print(error)
    There is no version main.9: the branch ends at main.4. main.3 is the version before. The newest of branch main: main.3.
    """


class ConfigError(MillraceError):
    """A pipeline file, environment variable or flag that cannot be used.

    What to do: mend the key that the message names; it says what is allowed.

    >>> from millrace.services.api import ConfigError, example_pipeline
    >>> try:
    ...     example_pipeline({"learner.gama": 2.0})
    ... except ConfigError as error:
    ...     print(error)
    pipeline even: learner.gama = 2.0: there is no such key. Did you mean gamma?
    """


class BadInputError(MillraceError):
    """Data handed to us that breaks its declared shape, type or range.

    What to do: mend the row, tensor or argument that the message names, and send it again.

    >>> from millrace.services.api import BadInputError, example_pipeline
    >>> try:
    ...     example_pipeline().append([{"x": "three", "even": False}])
    ... except BadInputError as error:
    ...     print(error)  # doctest: +ELLIPSIS
    Row 0 (counted from 0), column x: ...
    """


class LearnerError(MillraceError):
    """A learner cannot go on: its state and its input disagree.

    What to do: keep the pipeline file as the branch began with it, or begin another with ``--branch NEW``.
    """


class StateDamageError(MillraceError):
    """The stored state of a detector is not what was written. Whoever read it raises ``DamageError``, which says where it lay.

    What to do: restore it from a copy, or use the release that wrote it.
    """
