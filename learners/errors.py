"""Errors that every room raises, and those of learners. Each room adds its own: ``streams/errors.py``, ``services/errors.py``.

What each one means to the outside (exit code, HTTP status, gRPC status) is the table in ``services/errors.py``. A message says
what happened, to which thing, and what to do.
"""


class MillraceError(Exception):
    """Something a user or an operator can act on; its text is one clear sentence and the choices."""


class ConfigError(MillraceError):
    """A pipeline file, environment variable or flag that cannot be used."""


class BadInputError(MillraceError):
    """Data handed to us that breaks its declared shape, type or range."""


class LearnerError(MillraceError):
    """A learner cannot go on: its state and its input disagree."""


class StateDamageError(MillraceError):
    """The stored state of a detector is not what was written. Whoever read it says where it lay: ``DamageError``."""
