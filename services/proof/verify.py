"""`millrace verify`: fold a branch again from the log, and certify in the ledger what came out the same."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from millrace.services.errors import NotProvedError
from millrace.services.pipeline.instance import Instance, require_branch
from millrace.services.printable import printable
from millrace.services.user import user_name
from millrace.streams.branch.verify import Report, verify_with_marks
from millrace.streams.errors import StorageError
from millrace.streams.journal.entries import Mark
from millrace.streams.journal.ledger import Certificate, append_decision

log = logging.getLogger("millrace")


def prove(instance: Instance, branch: str) -> Report:
    """Fold the branch again from the log, and certify in the ledger the versions that came out the same.

    Raises: NotProvedError naming each thing that does not hold and the first bad mark.
    """
    require_branch(instance, branch)
    ledger = instance.ledger()  # before the journal, which has each version before its certificate
    certificates = ledger.certificates
    keep = instance.loaded.pipeline.worker.keep
    report, marks = verify_with_marks(instance.fold_spec, instance.backends(branch), branch, keep)
    findings = [str(finding) for finding in report.findings] + _belied(certificates, branch, marks)
    if findings:
        raise NotProvedError("\n".join(map(printable, findings)))
    ledger.follow(instance.ledger_stream())  # others certify meanwhile
    for mark in report.proved:
        if mark.version is not None and (mark.version not in certificates or not certificates[mark.version].holds):
            certify(instance, mark, report, proven(report))
    return report


def proven(report: Report) -> str:
    """The verdict on what a report proved."""
    return f"within {report.difference:.1e}" if report.difference else "equal"


def _belied(certificates: dict[str, Certificate], branch: str, journal_marks: Sequence[Mark] | None) -> list[str]:
    """What certificates say of this branch's versions and the journal no longer does."""
    if journal_marks is None:
        return []
    marks = {mark.version: mark.state_sha256 for mark in journal_marks if mark.version is not None}
    return [
        f"The ledger certifies version {version} with state {certificate.state_sha256}, and the journal "
        + (f"has it with state {marks[version]}." if version in marks else "has no such version.")
        + " Restore the journal from a copy."
        for version, certificate in certificates.items()
        if version.rpartition(".")[0] == branch and marks.get(version) != certificate.state_sha256
    ]


def certify(instance: Instance, mark: Mark, report: Report, verdict: str) -> None:
    """Write the certificate of the version that ``mark`` names; where the ledger cannot be written, say so and go on."""
    certificate = Certificate(
        who=user_name(),
        why="millrace verify",
        when_ms=time.time_ns() // 1_000_000,
        version=str(mark.version),
        base=report.base,
        state_sha256=mark.state_sha256,
        verdict=verdict,
        host=instance.host,
    )
    try:
        append_decision(instance.ledger_stream(), certificate)
    except StorageError as error:
        log.warning("The certificate of version %s (%s) could not be written: %s", mark.version, verdict, error)
