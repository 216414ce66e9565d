"""The ledger: a decision counts only where what it changes is what it believes it changes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import TIMEOUT_S

from millrace.streams.checksummed import seal
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Host
from millrace.streams.journal.ledger import NEXT, Certificate, Ledger, Operation, OperationState, Serve, Target, append_decision
from millrace.streams.sqlite.stream import SqliteStream
from millrace.streams.stream import ListStream, Stream

TARGETS = [None, Target(follow="main"), Target(version="main.3"), Target(version="main.9")]


def serve(before: Target | None, to: Target, endpoint: str = "default", who: str = "me") -> Serve:
    """A decision to serve something else."""
    return Serve(who=who, why="a reason", when_ms=5, endpoint=endpoint, before=before, to=to)


def read(stream: Stream) -> Ledger:
    """The ledger as a new reader sees it."""
    ledger = Ledger("ledger.sqlite")
    ledger.follow(stream)
    return ledger


DECISIONS = st.lists(
    st.builds(serve, st.sampled_from(TARGETS), st.sampled_from(TARGETS[1:]), st.sampled_from(["default", "shadow"])),
    max_size=15,
)


@given(DECISIONS, st.integers(0, 15))
def test_a_decision_counts_only_if_its_from_is_what_is_true_there(decisions: list[Serve], cut: int) -> None:
    """For each endpoint apart; and a reader that follows in pieces sees what a new one sees."""
    stream, followed, true, counted = ListStream(), Ledger("ledger.sqlite"), {}, []
    for at, decision in enumerate(decisions):
        if at == cut:
            followed.follow(stream)
        append_decision(stream, decision)
        if true.get(decision.endpoint) == decision.before:
            true[decision.endpoint] = decision.to
            counted.append(decision)
    followed.follow(stream)
    for ledger in (read(stream), followed):
        assert (ledger.serving, ledger.counted, ledger.offset) == (true, counted, len(decisions))


def test_of_two_hands_that_reach_for_one_endpoint_the_second_does_not_count() -> None:
    """Both saw the branch; the later entry names what is no longer true."""
    stream, main = ListStream(), Target(follow="main")
    append_decision(stream, serve(None, main))
    append_decision(stream, serve(main, Target(version="main.3"), who="operator"))
    append_decision(stream, serve(main, Target(version="main.9"), who="gate"))
    ledger = read(stream)
    assert ledger.serving == {"default": Target(version="main.3")} and [d.who for d in ledger.counted] == ["me", "operator"]


def operation(before: OperationState | None, state: OperationState, name: str = "replay-1", plan: str = "a") -> Operation:
    """A replay's step."""
    return Operation(who="me", why="w", when_ms=1, id=name, before=before, state=state, plan_sha256=plan, branch=name)


STAGES = [None, "planned", "running", "done", "taken-over", "aborted"]
STEPS = st.lists(
    st.builds(
        operation,
        st.sampled_from(STAGES),
        st.sampled_from(STAGES[1:]),
        st.sampled_from(["replay-1", "replay-2"]),
        st.sampled_from(["a", "a", "b"]),
    ),
    max_size=40,
)


@given(STEPS)
def test_of_replays_one_at_a_time_is_under_way_and_each_goes_forward_with_its_own_plan(steps: list[Operation]) -> None:
    """Whatever is written: no two run, no plan changes, no stage is skipped, what has ended stays so."""
    stream, stages, plans = ListStream(), {}, {}
    for step in steps:
        append_decision(stream, step)
        before, ledger = dict(stages), read(stream)
        stages = {name: replay.state for name, replay in ledger.operations.items()}
        assert sum(stage in ("running", "done") for stage in stages.values()) <= 1
        for name, stage in stages.items():
            assert before.get(name) == stage or stage in NEXT[before.get(name)]
            assert plans.setdefault(name, ledger.operations[name].plan_sha256) == ledger.operations[name].plan_sha256


def test_a_replay_goes_from_a_plan_to_its_end_while_another_waits() -> None:
    """The second may be planned, and run once the first has ended."""
    stream = ListStream()
    append_decision(stream, operation(None, "planned"))
    append_decision(stream, operation(None, "planned", "replay-2"))
    append_decision(stream, operation("planned", "running"))
    append_decision(stream, operation("planned", "running", "replay-2"))
    assert read(stream).operation == operation("planned", "running")
    for before, state in (("running", "running"), ("running", "done"), ("done", "taken-over")):
        append_decision(stream, operation(before, state))
    append_decision(stream, operation("planned", "running", "replay-2"))
    assert read(stream).operation == operation("planned", "running", "replay-2") and len(read(stream).counted) == 7


def test_a_certificate_always_counts_and_the_newest_of_a_version_is_kept() -> None:
    """It changes nothing that could have been changed before it."""
    stream, host = ListStream(), Host("cpu", "blas", 1, None, "0.1.0")
    for verdict in ("differs", "equal"):
        append_decision(
            stream,
            Certificate(
                who="me",
                why="w",
                when_ms=1,
                version="main.3",
                base="fork",
                state_sha256="5",
                verdict=verdict,
                host=host,
            ),
        )
    ledger = read(stream)
    assert ledger.certificates["main.3"].verdict == "equal" and len(ledger.counted) == 2 and not ledger.serving


def test_a_decision_says_from_in_the_file_as_the_rules_do() -> None:
    """``from`` is a word of Python's; the file has it all the same."""
    assert msgspec.json.decode(seal(serve(TARGETS[1], TARGETS[2])))["from"] == {"version": None, "follow": "main"}


def test_following_stops_at_a_damaged_entry_and_keeps_what_came_before() -> None:
    """Naming file and offset; following again meets it again, never passes it."""
    stream, main = ListStream(), Target(follow="main")
    append_decision(stream, serve(None, main))
    append_decision(stream, serve(main, Target(version="main.3")))
    append_decision(stream, serve(Target(version="main.3"), main))
    stream.values[1] = stream.values[1].replace(b"main.3", b"main.4")
    ledger = Ledger("ledger.sqlite")
    for _ in range(2):
        with pytest.raises(DamageError, match="ledger.sqlite: the ledger entry at offset 1 is damaged"):
            ledger.follow(stream)
        assert ledger.serving == {"default": main} and ledger.offset == 1


HAND = """
import sys
from pathlib import Path
from millrace.streams.journal.ledger import Ledger, Serve, Target, append_decision
from millrace.streams.sqlite.stream import SqliteStream
stream, ledger, name = SqliteStream(Path(sys.argv[1])), Ledger("ledger"), sys.argv[2]
for at in range(60):
    ledger.follow(stream)
    to = Target(version=f"{name}.{at}")
    append_decision(stream, Serve(who=name, why="w", when_ms=1, endpoint="e", before=ledger.serving.get("e"), to=to))
"""


@pytest.mark.slow
def test_hands_of_several_processes_form_one_chain(tmp_path: Path) -> None:
    """Each counted decision begins where the one before ended, and nobody's entry is lost."""
    command = [sys.executable, "-c", HAND, str(tmp_path / "ledger.sqlite")]
    SqliteStream(tmp_path / "ledger.sqlite").close()
    running = [subprocess.Popen([*command, name]) for name in "abc"]
    assert [process.wait(timeout=TIMEOUT_S) for process in running] == [0, 0, 0]
    ledger = read(SqliteStream(tmp_path / "ledger.sqlite"))
    assert ledger.offset == 180 and 60 <= len(ledger.counted) <= 180
    assert [d.before for d in ledger.counted] == [None, *(d.to for d in ledger.counted[:-1])]
    assert ledger.serving["e"] == ledger.counted[-1].to
