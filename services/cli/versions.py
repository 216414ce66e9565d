"""The commands about versions: what there is, what names what, and what leaves for other places."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from millrace.learners.errors import MillraceError
from millrace.services.cli.options import UNCHANGED, Call, log_format_option, on_pipeline, reason_option, yes_option

if TYPE_CHECKING:
    from millrace.services.decisions.decide import Change, Naming
    from millrace.streams.journal.ledger import Ledger, Target


def confirm(call: Call, change: Change | Naming, reason: str, yes: bool) -> None:
    """Show a change, make it where ``yes``, and say last how to undo it."""
    from millrace.services.decisions import decide as deciding

    if yes:
        deciding.decide(call.instance, change, reason)
    settle_words(call, change, yes, {})


def settle_words(call: Call, change: Change | Naming, yes: bool, more: dict[str, Any]) -> None:
    """Show a change, with ``more`` about it, and say last how to undo it."""
    from millrace.services.decisions import decide as deciding

    call.show([more | {"from": deciding.describe(change.before), "to": deciding.describe(change.to), "done": yes}])
    back = deciding.undo(change, call.pipeline, call.home)
    if not yes:
        click.echo(UNCHANGED, err=True)
    elif back is not None:
        click.echo(f"undo: {back}", err=True)


def hold_to(call: Call, ledger: Ledger, seen: str | None, relative: bool, yes: bool, own: Target | None = None) -> None:
    """Say what is in force; refuse a command that is relative to it where that is another's, or not what was ``seen``.

    ``ledger``: by which the command was chosen, or will be, so that both are of the same moment.
    """
    from millrace.services.decisions import in_force

    if yes and (relative or seen is not None):
        in_force.refuse_other(ledger, seen, own)
    if not yes and (words := in_force.in_force_words(ledger)) is not None:
        call.note(f"In force: {words}.")


def confirm_rollback(call: Call, version: str | None, seen: str | None, reason: str, yes: bool) -> None:
    """Show a rollback, do it where ``yes``, and say why it goes there; its plan lists open alarms and candidates."""
    from millrace.services.decisions import rollback

    ledger = call.instance.ledger()
    hold_to(call, ledger, seen, version is None, yes)
    chosen = rollback.choose_rollback(call.instance, version, ledger)
    if chosen.refused:
        call.show(chosen.candidates)
        raise MillraceError(chosen.refused + _verify(call, chosen.unverified))
    if version is None:
        call.note(f"Why {chosen.change.to.version}: {chosen.why}.")
    confirm(call, chosen.change, reason, yes)
    for rows in [] if yes else [chosen.alarms, chosen.candidates]:
        call.show(rows)


def _verify(call: Call, version: str | None) -> str:
    """The command that proves a version, where there is one to prove."""
    return "" if version is None else f" Verify it: {shlex.join(['millrace', 'verify', *call.words, '--version', version])}"


def confirm_learner(call: Call, version: str | None, seen: str | None, reason: str, yes: bool) -> None:
    """Show a rollback of the learner, do it where ``yes``, and say last how to undo it."""
    from millrace.services.replay import learner_rollback

    rewinding = learner_rollback.plan_learner(call.instance, version, seen)
    relative = version is None and rewinding.operation is None
    hold_to(call, rewinding.ledger, seen, relative, yes, rewinding.change.to)
    newest = learner_rollback.roll_back(call.instance, rewinding, reason) if yes else None
    call.show([rewinding.rows | learner_rollback.endpoint_words(rewinding) | {"done": yes}])
    if newest is None:
        click.echo(UNCHANGED, err=True)
    else:
        back = ["millrace", "rollback", call.pipeline, newest, "--learner", *call.at_home, "--reason", "undo", "--yes"]
        click.echo(f"undo: {shlex.join(back)}", err=True)


@click.command()
@on_pipeline
@click.argument("version")
@click.option("--alias", default="champion", show_default=True, help="Which name: champion, challenger, last-good or another.")
@reason_option
@yes_option
def promote(call: Call, version: str, alias: str, reason: str, yes: bool) -> None:
    """Let an alias name VERSION; `none` takes the alias away. What an alias names is kept, whatever its age.

    The endpoint goes on with what it serves.

    Example: millrace promote digits.toml newest --reason "best so far"
    """
    from millrace.services.decisions import decide as deciding

    confirm(call, deciding.plan_promotion(call.instance, alias, version), reason, yes)


@click.command()
@on_pipeline
def versions(call: Call) -> None:
    """Every version, what it weighs, whether it was verified, what names it and which endpoint serves it.

    Example: millrace versions digits.toml
    """
    from millrace.services.decisions import versions

    call.show(versions.versions(call.instance))
    click.echo(versions.weight(call.instance), err=True)


@click.command()
@on_pipeline
def drafts(call: Call) -> None:
    """How each draft did where it served, by domain: tokens a step, what was accepted, and how many replicas have it now.

    alpha is of tested positions, accepted_of_drafted of all drafted tokens, as vLLM counts. It reads the completions that the
    log still has.

    Example: millrace drafts llm.toml
    """
    from millrace.services.llm.drafts import drafts

    call.show(drafts(call.instance))


@click.command()
@on_pipeline
@click.argument("version")
@click.argument("folder", type=click.Path(path_type=Path))
def export(call: Call, version: str, folder: Path) -> None:
    """Write VERSION into a new FOLDER that stands for itself: mlflow.pyfunc.load_model(FOLDER), its head as ONNX.

    LEFT_OUT says which file is not in the folder and why, as its manifest.json does.

    Example: millrace export digits.toml newest exported
    """
    from millrace.services.registry.export import export

    manifest = export(call.instance, version, folder)
    row = {"version": manifest.identity.name, "folder": str(folder), "weights_sha256": manifest.weights_sha256}
    call.show([row | {"left_out": manifest.left_out_words}])


@click.command()
@on_pipeline
@click.option("--once", is_flag=True, help="Look once; exit 1 where MLflow cannot be reached.")
@click.option("--parent", default=0, hidden=True, help="Go on for as long as this process lives.")
@log_format_option(hidden=True)
def mirror(call: Call, once: bool, parent: int) -> None:
    """Register every version in MLflow with its aliases and tags, and go on until SIGINT or SIGTERM.

    The server is the pipeline's [mlflow] uri; a token for it is taken from the environment, as MLflow does.

    Example: millrace mirror digits.toml --once --set mlflow.uri=http://127.0.0.1:5000
    """
    from millrace.services.registry.mirroring import mirror

    call.show([mirror(call.instance, once, parent)])


VERSION_COMMANDS = (promote, versions, drafts, export, mirror)
