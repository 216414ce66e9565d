"""The commands of `millrace dead-letters`: parse, call, print."""

from __future__ import annotations

from itertools import islice

import click

from millrace.services.cli.options import UNCHANGED, Call, on_pipeline, reason_option, yes_option


@click.group(name="dead-letters")
def dead_letters() -> None:
    """Records that could not be read: which, why, and how they are sent once more."""


because_option = click.option("--because", metavar="REASON", help="Only letters of this reason, such as unreadable.")


@dead_letters.command(name="list")
@on_pipeline
@because_option
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="Letters at most, oldest first.")
def list_letters(call: Call, because: str | None, limit: int) -> None:
    """Each record's letter once, with why it could not be read.

    Example: millrace dead-letters list digits.toml
    """
    from millrace.services.data import dead_letters as letters

    rows = [letter.row for letter in islice(letters.letters(call.instance, because), limit)]
    call.show(rows)
    if not rows:
        call.note("No letters.")


@dead_letters.command(name="show")
@on_pipeline
@click.argument("letter", type=click.IntRange(0))
def show_letter(call: Call, letter: int) -> None:
    """All of one: the record as it was, its headers, and why it could not be read.

    Example: millrace dead-letters show digits.toml 0
    """
    from millrace.services.data import dead_letters as letters

    call.show(letters.letter(call.instance, letter).content)


@dead_letters.command()
@on_pipeline
@click.argument("letter", nargs=-1, type=click.IntRange(0))
@because_option
@click.option("--again", is_flag=True, help="Also letters that were sent once more already.")
@reason_option
@yes_option
def redrive(call: Call, letter: tuple[int, ...], because: str | None, again: bool, reason: str, yes: bool) -> None:
    """Send LETTERs once more, or all that have not been: new events at the log's end, with their original key and value.

    Example: millrace dead-letters redrive digits.toml --reason mended
    """
    from millrace.services.data import dead_letters as letters

    letters_sent = letters.chosen(call.instance, letter, because, again)
    if yes:
        letters.redrive(call.instance, letters_sent, reason, again)
    call.show(row.row | {"redriven": yes} for row in letters_sent)
    if letter and (before := len(set(letter)) - len(letters_sent)):
        click.echo(f"Sent already: {before} of those that you named; --again sends them too.", err=True)
    click.echo(f"{len(letters_sent)} sent." if yes else UNCHANGED, err=True)
