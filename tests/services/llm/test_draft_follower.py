"""Which draft a replica's engine has: the version that the ledger says, read from the store, or the one that it had before."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import tiny_draft
from draft_pipelines import equal, put, tiny, tiny_values
from safetensors.numpy import load_file

from millrace.learners.draft.folder import digest
from millrace.learners.errors import BadInputError
from millrace.services.decisions.decide import Change, decide, plan, target
from millrace.services.decisions.rollback import plan_rollback
from millrace.services.errors import SwapRefusedError
from millrace.services.llm.follower import RETRY_S, DraftFollower
from millrace.services.llm.swapping import DraftFile
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import ENDPOINT, Instance
from millrace.services.replay.learner_rollback import plan_learner
from millrace.services.replay.learner_rollback import roll_back as roll_back_learner
from millrace.services.training.run import Bounds, run
from millrace.streams.journal.ledger import Serve, Target, append_decision

pytest.importorskip("torch", reason="a draft is torch's, the extra `llm`")
PATIENCE_S = 120.0


@dataclass
class Shelf:
    """Takes drafts as an engine does, and keeps what it read of each; ``refuses`` names versions that it does not take."""

    refuses: set[str] = field(default_factory=set)
    taken: list[tuple[str, bool]] = field(default_factory=list)  # version, and whether it had to be newer
    offered: int = 0

    async def swap(self, draft: DraftFile, newer: bool) -> float:
        """Put another draft in place."""
        self.offered += 1
        if draft.identity.name in self.refuses:
            raise SwapRefusedError(f"Draft {draft.identity.name} is refused: it is on the list.")
        assert digest(draft.folder / "model.safetensors") == draft.sha256
        assert set(load_file(draft.folder / "model.safetensors")) and (draft.folder / "config.json").is_file()
        self.taken.append((draft.identity.name, newer))
        return 0.0


@pytest.fixture
def learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    """A pipeline with its first version and two of what it learned; the endpoint serves the first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    instance = tiny(tmp_path)
    for seed in range(2):
        put(instance, tiny_values(16, seed))
        run(instance, "main", Bounds(), take_over=False)
    return instance


def versions(instance: Instance) -> list[str]:
    """Of the branch, oldest first."""
    return [mark.version for mark in Archive(instance).marks("main") if mark.version is not None]


def following(instance: Instance, shelf: Shelf, folder: Path, acts: list[Callable[[DraftFollower], bool]]) -> DraftFollower:
    """A follower that begins and then goes on until each of ``acts`` has come true, in order."""

    async def follow() -> DraftFollower:
        follower = DraftFollower(instance, folder)
        follower.begun(await follower.first())
        task = asyncio.create_task(follower.run(shelf))
        async with asyncio.timeout(PATIENCE_S):
            for act in acts:
                while not act(follower):
                    assert not task.done(), task.exception()
                    await asyncio.sleep(0.01)
        task.cancel()
        return follower

    return asyncio.run(follow())


def serve(instance: Instance, version: str) -> bool:
    """As an operator does."""
    decide(instance, plan(instance, target(version, None)), "test")
    return True


def test_a_pipeline_of_completions_begins_with_the_draft_of_its_file_and_serves_it(learned: Instance) -> None:
    """The first version has learned nothing; later runs leave what is served alone, and no branch can be followed."""
    first, *later = versions(learned)
    assert len(later) == 2 and learned.ledger().serving[ENDPOINT] == Target(version=first)
    begun = Archive(learned).parts(Archive(learned).mark(first)).serve
    written = load_file(tiny_draft.folder() / "model.safetensors")
    assert {name.removeprefix("weight.") for name in begun if name.startswith("weight.")} <= set(written)
    assert all((begun[f"weight.{name}"] == value).all() for name, value in written.items() if f"weight.{name}" in begun)
    with pytest.raises(BadInputError, match="Drafts are served by version"):
        plan(learned, target(None, "main"))


def test_a_decision_brings_its_draft_in_and_a_rollback_the_one_before(learned: Instance, tmp_path: Path) -> None:
    """A newer one has to be newer, a rollback has not; only the folder of what is held stays."""
    first, middle, newest = versions(learned)
    shelf, folder = Shelf(), tmp_path / "drafts"
    follower = following(
        learned,
        shelf,
        folder,
        [
            lambda it: it.held is not None and it.held.identity.name == first and serve(learned, newest),
            lambda it: it.held is not None and it.held.identity.name == newest and roll_back(learned),
            lambda it: it.held is not None and it.held.identity.name == middle,
        ],
    )
    assert shelf.taken == [(newest, True), (middle, False)] and follower.described_target == f"version {middle}"
    assert (follower.swapped, follower.refused, follower.said) == (2, 0, "")
    assert [path.name.rpartition("-")[0] for path in folder.iterdir()] == [middle]


def roll_back(instance: Instance) -> bool:
    """As an operator does who names no version."""
    decide(instance, plan_rollback(instance, None), "test")
    return True


def test_what_an_engine_refuses_is_counted_once_said_and_not_offered_again(learned: Instance, tmp_path: Path) -> None:
    """It goes on with what it has; once the ledger says something else, nothing is wrong any more."""
    first, middle, newest = versions(learned)
    shelf, looks = Shelf(refuses={newest}), [0]

    def looked(it: DraftFollower) -> bool:
        looks[0] += 1
        return bool(it.said) and looks[0] > 50 and serve(learned, middle)

    follower = following(
        learned,
        shelf,
        tmp_path / "drafts",
        [
            lambda it: serve(learned, newest),
            looked,
            lambda it: it.held is not None and it.held.identity.name == middle,
        ],
    )
    assert shelf.offered == 2 and shelf.taken == [(middle, True)]
    assert (follower.swapped, follower.refused, follower.said) == (1, 1, "")


def test_what_was_refused_once_is_offered_again_when_it_is_decided_for_again(learned: Instance, tmp_path: Path) -> None:
    """Between the two times the ledger said what is held; now the engine takes it."""
    first, _, newest = versions(learned)
    shelf, folder, again = Shelf(refuses={newest}), tmp_path / "drafts", list[bool]()

    def decided_again(it: DraftFollower) -> bool:
        if it.described_target != f"version {first}" or it.said:
            return False
        shelf.refuses.clear()
        return serve(learned, newest)

    following(
        learned,
        shelf,
        folder,
        [
            lambda it: serve(learned, newest),
            lambda it: bool(it.said) and serve(learned, first),
            decided_again,
            lambda it: again.append(True) or it.held is not None and it.held.identity.name == newest,
        ],
    )
    assert shelf.offered == 2 and shelf.taken == [(newest, True)]


def test_a_full_disk_leaves_nothing_behind_and_is_waited_for(learned: Instance, tmp_path: Path) -> None:
    """Files may have no more than a kilobyte, as a full disk: no folder stays, and once there is room the draft comes in."""
    newest, folder = versions(learned)[-1], tmp_path / "drafts"
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    left: list[list[Path]] = []

    def fill(_: DraftFollower) -> bool:
        serve(learned, newest)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
        return True

    def empty(it: DraftFollower) -> bool:
        if it.said:
            left.append([path for path in folder.iterdir() if it._file is None or path != it._file.folder])
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return bool(it.said)

    try:
        following(
            learned,
            shelf := Shelf(),
            folder,
            [fill, empty, lambda it: it.held is not None and it.held.identity.name == newest],
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert left == [[]] and shelf.taken == [(newest, True)] and len(list(folder.iterdir())) == 1


def test_a_draft_of_another_target_is_read_once(learned: Instance, tmp_path: Path) -> None:
    """It will never do, so it is passed by: said and counted once, and the store is left alone until somebody decides."""
    newest, reads = versions(learned)[-1], list[str]()
    llm = learned.loaded.pipeline.llm
    assert llm is not None
    pipeline = replace(learned.loaded.pipeline, llm=replace(llm, target_sha256="0" * 64))
    other = replace(learned, loaded=replace(learned.loaded, pipeline=pipeline))

    class Reading(DraftFollower):
        def _written(self, version: str) -> DraftFile:
            reads.append(version)
            return super()._written(version)

    async def follow() -> DraftFollower:
        follower = Reading(learned, tmp_path / "drafts")
        follower.begun(await follower.first())
        follower._instance = other
        serve(learned, newest)
        task, looks = asyncio.create_task(follower.run(Shelf())), 0
        async with asyncio.timeout(PATIENCE_S):
            while looks < 3:
                offset = follower._decisions._ledger.offset
                await asyncio.sleep(RETRY_S)
                looks += bool(follower.said) and follower._decisions._ledger.offset == offset
        task.cancel()
        return follower

    follower = asyncio.run(follow())
    assert reads[1:] == [newest] and follower.refused == 1 and "distilled for a target" in follower.said


def test_what_is_decided_while_an_engine_begins_comes_before_it_is_ready(learned: Instance, tmp_path: Path) -> None:
    """The engine has begun with the first, and catches up before anybody is answered; a refusal then is no silence."""
    first, middle, newest = versions(learned)

    async def begin(shelf: Shelf, version: str) -> DraftFollower:
        follower = DraftFollower(learned, tmp_path / "drafts")
        draft = await follower.first()
        serve(learned, version)
        follower.begun(draft)
        await follower.catch_up(shelf)
        return follower

    follower = asyncio.run(begin(shelf := Shelf(), newest))
    assert follower.held is not None and follower.held.identity.name == newest and shelf.taken == [(newest, True)]
    with pytest.raises(SwapRefusedError, match="on the list"):
        asyncio.run(begin(Shelf(refuses={middle}), middle))


def test_a_draft_that_cannot_be_read_is_waited_for(learned: Instance, tmp_path: Path) -> None:
    """Its part in the store is cut; the draft before goes on, said and counted once. Whole again, it comes in."""
    newest = versions(learned)[-1]
    parts = {path: path.read_bytes() for path in (learned.folder / "store").rglob("*") if path.is_file()}

    def cut(_: DraftFollower) -> bool:
        serve(learned, newest)
        for path in parts:
            path.write_bytes(parts[path][:10])
        return True

    def mended(it: DraftFollower) -> bool:
        if not it.said:
            return False
        for path, content in parts.items():
            path.write_bytes(content)
        return True

    follower = following(
        learned,
        shelf := Shelf(),
        tmp_path / "drafts",
        [cut, mended, lambda it: it.held is not None and it.held.identity.name == newest],
    )
    assert shelf.taken == [(newest, True)] and follower.refused >= 1 and follower.said == ""


def test_an_endpoint_that_followed_a_branch_goes_on_with_its_newest_version(learned: Instance) -> None:
    """As a pipeline of an earlier release says it; the next run decides, and counts."""
    before = learned.ledger().serving[ENDPOINT]
    append_decision(
        learned.ledger_stream(),
        Serve(who="millrace run", why="before", when_ms=1, endpoint=ENDPOINT, before=before, to=Target(follow="main")),
    )
    assert learned.ledger().serving[ENDPOINT].follow == "main"
    run(learned, "main", Bounds(), take_over=False)
    assert learned.ledger().serving[ENDPOINT] == Target(version=versions(learned)[-1])


def test_a_change_of_what_is_served_starts_from_what_was(learned: Instance) -> None:
    """The first decision of a pipeline of completions names a version, so an undo can go back to it."""
    first, *_, newest = versions(learned)
    assert plan(learned, target("newest", None)) == Change(Target(version=first), Target(version=newest))


def test_where_learning_goes_back_the_new_branch_serves_its_first_version(learned: Instance) -> None:
    """It begins with the draft that was gone back to, as a version of its own, and the endpoint no longer follows anything."""
    middle = versions(learned)[1]
    roll_back_learner(learned, plan_learner(learned, middle), "test")
    branch = str(learned.ledger().serving[ENDPOINT].follow)
    run(learned, branch, Bounds(), take_over=False)
    archive, served = Archive(learned), learned.ledger().serving[ENDPOINT]
    assert served.follow is None and served.version == archive.marks(branch)[-1].version
    parts = [archive.parts(archive.mark(version)).serve for version in (middle, str(served.version))]
    assert equal(*({name: value for name, value in each.items() if name.startswith("weight.")} for each in parts))
