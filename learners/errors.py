"""Every error a user can meet, as one tree.

It stands in the lowest room because all three rooms raise from it; what each one means to the outside (exit code, HTTP
status, gRPC status) is the table in ``services/errors.py``. A message says what happened, to which thing, and what to do.
"""


class MillraceError(Exception):
    """Something a user or an operator can act on; its text is one clear sentence and the choices."""


class ConfigError(MillraceError):
    """A pipeline file, environment variable or flag that cannot be used."""


class BadInputError(MillraceError):
    """Data handed to us that breaks its declared shape, type or range."""


class LearnerError(MillraceError):
    """A learner cannot go on: its state and its input do not fit together."""


class DamageError(MillraceError):
    """Stored bytes are not what was written: a flipped byte, a truncated part, a recreated topic."""


class MissingPartError(DamageError):
    """A part of a checkpoint is not in the store."""


class PrunedError(DamageError):
    """A stream no longer has the values before its first one."""


class StorageError(MillraceError):
    """The disk or the database refused: full, read-only, locked, not a folder."""


class OffsetsGoneError(MillraceError):
    """The log no longer has records that a position or a journal entry names."""


class ReplacedError(MillraceError):
    """Another writer has taken this branch; this one lets nothing more out."""


class EndedError(ReplacedError):
    """This branch goes no further; another may have taken its place."""


class BusyError(MillraceError):
    """A live process already writes this branch."""


class TooManyRejectedError(MillraceError):
    """So many records could not be read that going on would be a mistake."""


class NotProvedError(MillraceError):
    """Verification found something that does not hold."""


class NotReadyError(MillraceError):
    """There is nothing to answer from yet; ask again."""


class NotServedError(MillraceError):
    """A model, a version or a path that is asked for and is not served here."""


class TooLargeError(BadInputError):
    """A request over the limit on its size."""


class NotOfferedError(MillraceError):
    """A call that the protocol has and this endpoint does not answer."""


class OverloadedError(MillraceError):
    """More is being worked on than may wait; ask again."""


class TooSlowError(BadInputError):
    """A request that did not arrive whole in time."""


class AccessError(MillraceError):
    """A caller who did not show a token."""


class ScopeError(AccessError):
    """A caller whose token is for something else."""


class OutdatedError(MillraceError):
    """What a plan was made from is no longer so."""


class MirrorError(MillraceError):
    """The place that versions are mirrored to cannot be reached, or refuses."""


class NotCountedError(MillraceError):
    """A decision that was written to the ledger and does not count, because another came first."""
