"""The commands of `millrace alarms`: parse, call, print."""

from __future__ import annotations

import click

from millrace.services.cli.options import UNCHANGED, Call, live_branch_option, on_pipeline, reason_option, yes_option


@click.group()
def alarms() -> None:
    """What the detectors of [drift] have raised, which of it is open, and how an alarm is closed."""


@alarms.command(name="list")
@on_pipeline
@live_branch_option
def alarms_list(call: Call, branch: str | None) -> None:
    """Alarms that something got worse, oldest first: since which row, noticed where, by what, open or closed by whom.

    Those of branches that it comes from are among them.

    Example: millrace alarms list digits.toml
    """
    from millrace.services.decisions import alarms as raised

    rows = [entry.row for entry in raised.alarms(call.instance, branch)]
    call.show(rows)
    click.echo(f"{sum(row['state'] == 'open' for row in rows)} open, {len(rows)} in all.", err=True)


@alarms.command()
@on_pipeline
@click.argument("alarm")
def show(call: Call, alarm: str) -> None:
    """One alarm by its id: all that is known of it.

    Example: millrace alarms show digits.toml ALARM
    """
    from millrace.services.decisions import alarms as raised

    row = raised.alarm(call.instance, alarm).row
    call.show([{"what": name, "value": value} for name, value in row.items()])


@alarms.command()
@on_pipeline
@click.argument("names", metavar="ALARM...", nargs=-1, required=True)
@reason_option
@yes_option
def close(call: Call, names: tuple[str, ...], reason: str, yes: bool) -> None:
    """Say that alarms no longer stand: `rollback` and last-good go by those that are open.

    Close what you have looked at and know to be no fault, such as a change of the world that is to be learned. A replay that
    takes over closes the alarms whose rows it leaves behind.

    Example: millrace alarms close digits.toml ALARM --reason "new classes, no fault"
    """
    from millrace.services.decisions import alarms as raised
    from millrace.services.decisions.rollback import name_last_good

    chosen = raised.plan_close(call.instance, names)
    if yes:
        raised.close(call.instance, [entry.raised.id for entry in chosen], reason)
        name_last_good(call.instance)
    call.show([{"alarm": entry.raised.id, "onset_row": entry.raised.alarm.onset_rows, "closed": yes} for entry in chosen])
    if not yes:
        click.echo(UNCHANGED, err=True)
