"""Errors about what is stored: the log, journals, checkpoints, and who may write them."""

from millrace.learners.errors import MillraceError


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


class TooManyRejectedError(MillraceError):
    """So many records could not be read that going on would be a mistake."""


class FoldTimeoutError(MillraceError):
    """A version was not folded again within the time that was given for it."""
