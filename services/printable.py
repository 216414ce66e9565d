"""Text that others wrote, as a terminal may be given it: one place escapes whatever does not print.

Names of classes, reasons, headers and messages come from data and from other people. A line break would forge a row, an escape
sequence or a mark of direction would change what stands beside it.
"""

from __future__ import annotations

import copy
import logging

MOST_WRITTEN = 1000  # characters of what an operator writes, such as a reason


def printable(text: str) -> str:
    """The text with whatever does not print as its escape, as Python writes it.

    >>> printable("north\\nrejected 0 \\x1b[31m\\u202e")
    'north\\\\nrejected 0 \\\\x1b[31m\\\\u202e'
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def printable_lines(text: str) -> str:
    """The same of a message that may have several lines, such as a traceback: all but the first are set in, so none passes
    for a message of its own.

    >>> printable_lines("it failed\\nINFO all is well")
    'it failed\\n  INFO all is well'
    """
    return "\n  ".join(map(printable, text.split("\n")))


def in_one_line(record: logging.LogRecord) -> logging.LogRecord:
    """A record whose message has no line break, for it may come from data; its traceback, which is ours, is as it was."""
    message = record.getMessage()
    if "\n" not in message:
        return record
    record = copy.copy(record)
    record.msg, record.args = message.replace("\n", "\\n"), None
    return record
