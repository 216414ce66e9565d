"""A pipeline on a real broker, the processes that learn it, and what proves that nothing was lost or learned twice."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import exactly_once
from exactly_once import PIPELINE, Range, command, gram_error, instance_of, keys_in, ranges_read
from fault_proxy import FaultProxy
from pipelines import TIMEOUT_S, clean_environment

from millrace.services.data.dead_letters import letters
from millrace.services.demo.broker import Broker
from millrace.services.demo.evidence import outputs_of
from millrace.services.pipeline import backends as logs
from millrace.streams.branch.branch import load_checkpoint
from millrace.streams.errors import StorageError
from millrace.streams.journal.entries import Step
from millrace.streams.journal.journal import Cursor, checked_entry, summarise
from millrace.streams.kafka.client import Link
from millrace.streams.records import Record

POLL_S = 0.05
# A broker that was killed has forgotten producers whose newest record is a day old (producer.id.expiration.ms), and takes what
# they try again for new: with timestamps of 1970 rows stood twice in the log.
BEGIN_MS = time.time_ns() // 1_000_000
AWAY_S = 300.0  # that a broker may be, for a worker that lives through it
ON_KAFKA = """
[log]
kind = "kafka"
partitions = {partitions}
[log.kafka]
bootstrap = "{bootstrap}"
patience_s = {patience_s}
"""
Shown = tuple[str, bool, str]  # an invariant, whether it holds, and by what that is seen


@dataclass
class Told:
    """What a fault did, and what was seen of each invariant that it bears on."""

    fault: str
    did: str
    shown: list[Shown] = field(default_factory=list)
    skipped: str = ""  # why it could not be played
    seconds: float = 0.0  # that it took

    @property
    def green(self) -> bool:
        """Whether everything holds, and there is something that does."""
        return bool(self.skipped) or (bool(self.shown) and all(holds for _, holds, _ in self.shown))


def until(true: Callable[[], bool], what: str) -> float:
    """Look again and again; how long it took. Raises: TimeoutError where it never becomes true."""
    start_s = time.monotonic()
    while not true():
        if time.monotonic() - start_s > TIMEOUT_S:
            raise TimeoutError(f"{what}: not within {TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)
    return time.monotonic() - start_s


def record(number: int) -> Record:
    """As it lies in the log."""
    return exactly_once.record(number, BEGIN_MS)


@dataclass
class Ground:
    """What every fault is played on: a broker, a proxy before it, a folder, and how long faults last."""

    broker: Broker
    proxy: FaultProxy
    folder: Path
    quick: bool
    minutes: float  # of the longest fault


class Scene:
    """One pipeline of one fault's own, in a folder and on topics of its own."""

    def __init__(self, ground: Ground, name: str, partitions: int = 1, patience_s: float = AWAY_S) -> None:
        self.broker, self.name = ground.broker, f"{name}-{time.monotonic_ns()}"
        self.folder = ground.folder / self.name
        self.folder.mkdir()
        self.pipeline = self.folder / "faults.toml"
        text = PIPELINE.format(name=self.name, checkpoint_rows=150, version_rows=1000)
        text += ON_KAFKA.format(bootstrap=ground.broker.bootstrap, partitions=partitions, patience_s=patience_s)
        self.pipeline.write_text(text, encoding="utf-8")
        self.proxied = ["--set", f'log.kafka.bootstrap="127.0.0.1:{ground.proxy.port}"']
        self.home = self.folder
        self.sent = list[int]()  # numbers of good rows that the log has acknowledged
        self._workers = list[subprocess.Popen[bytes]]()
        self.instance = instance_of(self.pipeline)
        self.link: Link = self.instance.log().link
        self.log = self.instance.log()

    def send(self, count: int, pieces: int = 1, pause_s: float = 0.0) -> None:
        """Append good rows. Each piece is sent until it is acknowledged; only where that is sure are they counted."""
        for _ in range(pieces):
            numbers = range(len(self.sent), len(self.sent) + count // pieces)
            self.log.append(self.name, [record(number) for number in numbers])
            self.sent += numbers
            time.sleep(pause_s)

    def sending(self, count: int, pieces: int, pause_s: float) -> threading.Thread:
        """The same beside what follows."""
        thread = threading.Thread(target=self.send, args=(count, pieces, pause_s))
        thread.start()
        return thread

    def command(self, verb: str, *words: str) -> list[str]:
        """The command line of a fresh process."""
        return command(verb, self.pipeline, *words, home=self.home)

    def worker(self, *words: str, follow: bool = True) -> subprocess.Popen[bytes]:
        """`millrace run --follow` in a process of its own."""
        with self.stderr_path.open("ab") as stderr:
            line = self.command("run", *(["--follow"] if follow else []), *words)
            worker = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=stderr, env=clean_environment())
        self._workers.append(worker)
        return worker

    @property
    def stderr_path(self) -> Path:
        """What its workers write to stderr."""
        return self.folder / "worker.log"

    def last_words(self) -> str:
        """The error that the newest worker ended with."""
        lines = self.stderr_path.read_text(encoding="utf-8").splitlines()
        return lines[-1] if lines else ""

    def read_by_now(self) -> int:
        """Offsets that the journal says were read."""
        return sum(self.summary().position.values())

    def summary(self):
        """One pass over the branch's journal."""
        return summarise(self.instance.journal("main"), "main")

    def wait_read(self, offsets: int) -> float:
        """Until so many were; how long it took."""
        return until(lambda: self.read_by_now() >= offsets, f"{self.name}: {offsets} offsets read")

    def end(self, worker: subprocess.Popen[bytes]) -> int:
        """SIGTERM, and its exit status: it finishes its step, marks a version and ends."""
        worker.send_signal(signal.SIGTERM)
        return worker.wait(TIMEOUT_S)

    def learn(self) -> int:
        """A worker that runs to the log's end; its exit status."""
        return self.worker(follow=False).wait(TIMEOUT_S)

    def ended_by_itself(self, worker: subprocess.Popen[bytes]) -> tuple[int, int]:
        """Exit status of a worker that must stop, and the most memory it held, in MiB, as the kernel has it."""
        most_kib = [0]

        def over() -> bool:
            process_status = Path(f"/proc/{worker.pid}/status").read_text(encoding="utf-8")  # still there when it has ended
            most_kib.extend(int(line.split()[1]) for line in process_status.splitlines() if line.startswith("VmHWM"))
            return worker.poll() is not None

        until(over, f"{self.name}: the worker stops")
        return worker.returncode, max(most_kib) >> 10

    def asked(self, verb: str, *words: str) -> dict[str, object]:
        """What a command that looks says, of a fresh process. Raises: RuntimeError with its error."""
        done = subprocess.run(
            self.command(verb, *words), capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=clean_environment()
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-300:])
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return {str(line["what"]): line["value"] for line in lines} if "what" in lines[0] else lines[0]

    def close(self) -> None:
        """End what it started and forget its topics."""
        for worker in self._workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        self.link.delete([name for name in self.link.names() if name.startswith(self.name)])
        self.link.close()
        logs._connected.cache_clear()  # the next one has a connection of its own

    # Proofs

    def proofs(self, accepted: Sequence[int] | None = None) -> list[Shown]:
        """All that holds of every scene, once its workers have ended: I1, I4, I6, I7, I9 and I10."""
        numbers = self.sent if accepted is None else accepted
        status = self.asked("status")
        verified = self.asked("verify")
        return [self.learned_once(numbers, status), *self.folded_anew(verified), self.one_writer(), self.accounted(status)]

    def learned_once(self, numbers: Sequence[int], status: dict[str, object]) -> Shown:
        """Each record once in the log, by its id, and learned once: by count, the journal's reads, and the Gram matrix."""
        backends = self.instance.backends("main")
        ids = self.ids(ranges_read(backends))
        lie = self.ids([(tp, low, high) for tp, (low, high) in backends.source.bounds().items()])
        once = sorted(ids) == sorted(lie) == sorted(numbers)
        name, holds, evidence = self.gram_of(ids, status)
        return name, once and holds, f"sent {len(numbers)}, in the log {len(lie)}, each read once; {evidence}"

    def gram_of(self, ids: Sequence[int], status: dict[str, object]) -> Shown:
        """The learner's sums are those of these rows, in the order they were read, but for the newest that wait."""
        waiting = int(str(status["waiting"]))  # for the rest of their batch
        state = load_checkpoint(self.instance.backends("main").store, self.summary().marks[-1])["learner"]
        apart = gram_error(state, ids[: len(ids) - waiting])
        learned = status["learned"]
        holds = state["rows"] == learned == len(ids) - waiting and apart <= 1e-10
        return "I1", holds, f"{len(ids)} = learned {learned} + waiting {waiting}; G against the batch Gram: {apart:.0e}"

    def ids(self, ranges: Sequence[Range]) -> list[int]:
        """The numbers of the good rows there, in order."""
        keys = keys_in(self.instance.backends("main").source, ranges)
        return [int(key) for key in keys if key is not None and key.isdigit()]

    def folded_anew(self, verified: dict[str, object]) -> list[Shown]:
        """A fresh process folds journal and log again and has the same bits."""
        mark = self.summary().marks[-1]
        same = verified["state_sha256"] == mark.state_sha256 and verified["findings"] == 0
        proved = verified["proved"]
        sha = f"state {mark.state_sha256[:12]} folded anew equal"
        assert isinstance(proved, list)
        return [("I10", same, sha), ("I4", mark.version in proved, f"{len(proved)} marks proved, {mark.version} the newest")]

    def one_writer(self) -> Shown:
        """Whatever others appended is dead for every reader, and of it no scores were let out."""
        cursor, dead, reads = Cursor(), 0, dict[tuple[int, int], list[tuple[str, int, int]]]()
        for offset, raw in self.instance.journal("main").read(0):
            entry = checked_entry(raw, "main", offset, cursor)
            counts = cursor.take(entry)
            dead += not counts
            if counts and isinstance(entry, Step):
                reads[entry.epoch, entry.seq] = [(tp, start, stop) for tp, start, stop, _, _ in entry.reads]
        outputs, _ = outputs_of(self.instance, "main")
        owned = bool(outputs) and all(reads.get((output.epoch, output.seq)) == output.reads for output in outputs)
        return "I6", owned, f"epochs {cursor.epoch}, dead entries {dead}; scores of {len(outputs)} steps, each of a counted one"

    def accounted(self, status: dict[str, object]) -> Shown:
        """Learned + passed + rejected + waiting = read; what was rejected is a dead letter with its reason."""
        fates = {name: int(str(status[name])) for name in ("learned", "passed", "rejected", "waiting")}
        reasons = [letter.why["reason"] for letter in letters(self.instance)]
        whole = sum(fates.values()) == status["records"] and len(reasons) == fates["rejected"] and all(reasons)
        sum_of_fates = " + ".join(f"{name} {count}" for name, count in fates.items())
        return (
            "I7",
            whole,
            f"read {status['records']} = {sum_of_fates}" + (f", letters {', '.join(sorted(set(reasons)))}" if reasons else ""),
        )


def no_lag(seconds: float, since: str) -> Shown:
    """Everything was read that lay there."""
    return "I9", True, f"lag 0 after {seconds:.1f} s of {since}"


def refused(scene: Scene, code: int, names: Sequence[str]) -> Shown:
    """The worker stopped with an error that names what it must."""
    stderr = scene.last_words()
    missing = [name for name in names if name not in stderr]
    how = f"stopped: {stderr[:230]}" if not missing else f"exit {code}, and does not name {missing}: {stderr[:300]}"
    return "I1", code == 1 and not missing, how


def patiently(call: Callable[[], object]) -> None:
    """Again, until the broker is back."""

    def done() -> bool:
        try:
            call()
        except StorageError:
            return False
        return True

    until(done, "the broker answers")
