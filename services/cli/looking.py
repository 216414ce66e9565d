"""The commands that show where a branch is, and what it and the ledger say."""

from __future__ import annotations

import click
from click.core import ParameterSource

from millrace.services.cli.options import Call, branch_option, live_branch_option, on_pipeline


@click.command()
@on_pipeline
@live_branch_option
def status(call: Call, branch: str | None) -> None:
    """Where a branch is, how far behind, where every record went, what it scores, what trainer and replicas do.

    Example: millrace status digits.toml
    """
    from millrace.services.decisions import status as looking
    from millrace.services.registry import mirror
    from millrace.services.serving import status as endpoint_status

    facts = (
        looking.status(call.instance, branch or looking.shown_branch(call.instance))
        | mirror.describe(call.instance)
        | endpoint_status.served(call.instance)
    )
    call.show([{"what": name, "value": value} for name, value in facts.items()])


@click.command()
@on_pipeline
@branch_option
@click.option("--ledger", is_flag=True, help="Print the pipeline's decisions instead of a branch's journal.")
def log(call: Call, branch: str, ledger: bool) -> None:
    """The journal of a branch, entry by entry, or the ledger.

    Example: millrace log digits.toml --output json
    """
    from millrace.services.decisions import status as looking

    call.show(looking.ledger_lines(call.instance) if ledger else looking.journal_lines(call.instance, branch))
    if not ledger:
        say_if_not_live(call, branch)


def say_if_not_live(call: Call, branch: str) -> None:
    """Where nobody has named a branch, and what was looked at is not the live one: on stderr which one is."""
    from millrace.services.decisions import status as looking

    by_default = click.get_current_context().get_parameter_source("branch") is ParameterSource.DEFAULT
    if by_default and (live := looking.shown_branch(call.instance)) != branch:
        call.note(f"This was {branch}. Live is {live}: `--branch {live}` looks at that.")
