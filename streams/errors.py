"""Errors about what is stored: the log, journals, checkpoints, and who may write them."""

from millrace.learners.errors import MillraceError


class DamageError(MillraceError):
    """Stored bytes are not what was written: a flipped byte, a truncated part, a recreated topic.

    What to do: restore the file or topic from a copy, or start again; a worker goes on from an older checkpoint where it can.
    """


class MissingPartError(DamageError):
    """A part of a checkpoint is not in the store.

    What to do: restore the part from a copy of the folder; older checkpoints and the log may still give the state.
    """


class PrunedError(DamageError):
    """A stream no longer has the values before its first one.

    What to do: restore the journal's beginning from a copy; where versions hold it, it is read from them.
    """


class StorageError(MillraceError):
    """The disk, the database or the broker refused: full, read-only, locked, not a folder, not reachable.

    What to do: free space, mend the rights or bring the broker back, then start again; nothing that was confirmed is lost.
    """


class OffsetsGoneError(MillraceError):
    """The log no longer has records that a position or a journal entry names.

    What to do: start from a version that the message names, or raise the log's retention before it happens again.
    """


class ReplacedError(MillraceError):
    """Another writer has taken this branch; this one lets nothing more out.

    What to do: nothing, where that was wanted; else stop the other writer and start this one again.
    """


class EndedError(ReplacedError):
    """This branch goes no further; another may have taken its place.

    What to do: name the branch that took its place, or begin another with ``--branch NEW``.
    """


class TooManyRejectedError(MillraceError):
    """So many records could not be read that going on would be a mistake.

    What to do: look at ``millrace dead-letters list``; mend the producer or the schema, or raise ``worker.stop_share``. To go
    past what is in the log by now: ``millrace run --past-rejects --reason WHY``.
    """


class FoldTimeoutError(MillraceError):
    """A version was not folded again within the time that was given for it.

    What to do: raise ``versions.verify_budget_s``, or prove it by ``millrace verify PIPELINE --version VERSION``.
    """
