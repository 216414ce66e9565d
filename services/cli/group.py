"""The group of all commands: which words it takes, and how an error of ours ends it."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from traceback import walk_tb
from typing import Any

import click

from millrace.learners.errors import MillraceError
from millrace.services.cli.options import say_error
from millrace.services.errors import FAILED, NotProvedError, exit_code
from millrace.services.printable import in_one_line, printable, printable_lines

STDOUT = 1  # the file


class Commands(click.Group):
    """The one place where an error of ours becomes a sentence on stderr and an exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse words that are not UTF-8: nothing that is stored could hold them."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):  # what a terminal's encoding does not have is shown by its number
                stream.reconfigure(errors="backslashreplace")
        if bad := [word for word in args if not _is_unicode(word)]:
            raise click.UsageError(f"{ascii(bad[0])} is not UTF-8. Write it in this terminal's encoding, UTF-8.", ctx)
        with _printing():  # the help
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with _printing():
                return super().invoke(ctx)
        except MillraceError as error:
            findings = isinstance(error, NotProvedError)  # a line each
            say_error(str(error) if findings else printable(str(error)))
            sys.exit(exit_code(error))
        except UnicodeEncodeError as error:
            say_error(f"{ascii(error.object)[:200]} is not UTF-8. Name folder and files, and set $MILLRACE_HOME, in UTF-8.")
            sys.exit(FAILED)
        except MemoryError as error:
            say_error(f"not enough memory ({error}). Declare fewer columns, or use a larger machine.")
            sys.exit(FAILED)


class Printable(logging.Formatter):
    """A message as a terminal may be given it, whatever was in the data it speaks of."""

    def format(self, record: logging.LogRecord) -> str:
        """Escaped: in one line, with its traceback set in after that."""
        return printable_lines(super().format(in_one_line(record)))


@contextmanager
def _printing() -> Iterator[None]:
    """What cannot be printed, such as on a full disk, ends a command in a sentence; click handles a reader who left."""
    try:
        yield
    except OSError as error:
        printing = any(frame.f_code is click.echo.__code__ for frame, _ in walk_tb(error.__traceback__))
        if not printing or error.errno == errno.EPIPE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # Python would try once more as it ends
        say_error(f"nothing can be printed: {error.strerror}. What was to be done may be done: look before you repeat it.")
        sys.exit(FAILED)


def _is_unicode(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:  # bytes of another encoding, which Python keeps as halves of characters
        return False
    return True
