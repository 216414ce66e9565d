"""A single Kafka broker of one's own on this machine, for `make kafka`, `make run LOG=kafka` and the tests.

    python -m millrace.services.demo.broker --jars .kafka/jars --folder .kafka/data

It is Apache Kafka as published, in KRaft mode: broker and controller in one Java process, listening on loopback alone, with its
data in a folder of its own. Nothing of it is replicated, so it is for development and tests.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from millrace.services.processes import Patience, end
from millrace.services.serving.ports import free_port
from millrace.streams.errors import StorageError

JARS = ".kafka/jars"  # where `make kafka` puts them
POLL_S = 0.05  # between two polls of the broker
HEAP = ["-Xms128m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]  # small and soon there; not for a team's broker
PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners={behind}PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners={proxy}PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
# After a kill -9 the broker waits for its own former session to end; with the defaults that is most of half a minute.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
# A topic that is deleted, and records past their retention, go soon.
file.delete.delay.ms=1000
log.retention.check.interval.ms=1000
"""


class Broker:
    """One broker: started, killed and started again on the same port with the same data."""

    def __init__(self, folder: Path, jars: Path = Path(JARS), port: int = 0, proxy: int = 0) -> None:
        """Its folder is made ready for use; nothing runs yet. Whoever comes in by ``behind`` is told to use the port ``proxy``.

        Raises: StorageError where Java or the jars are not there.
        """
        self._java = shutil.which("java")
        if self._java is None:
            raise StorageError(
                "There is no java on this machine, and a Kafka broker needs it. Install a Java runtime, 17 or newer."
            )
        if not list(jars.glob("kafka-server-*.jar")):
            raise StorageError(f"{jars} does not hold Kafka's jars. `make kafka` gets them, or name the folder with --jars.")
        self._classes = f"{jars.resolve()}/*"
        self.folder = folder.resolve()
        self._properties = self.folder / "server.properties"
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self.port = port or self._port_before() or free_port()
        self.behind = free_port() if proxy else 0
        self._proxy = proxy
        self._prepare()

    @property
    def bootstrap(self) -> str:
        """Where clients find it: ``log.kafka.bootstrap`` of a pipeline."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the Java process. Raises: StorageError where none runs."""
        if self._process is None:
            raise StorageError("The broker does not run.")
        return self._process.pid

    def _port_before(self) -> int:
        lines = self._properties.read_text(encoding="utf-8").splitlines() if self._properties.exists() else []
        listeners = next((line for line in lines if line.startswith("advertised.listeners=")), ":0")
        return int(listeners.rpartition(":")[2])

    def _prepare(self) -> None:
        """Settings and, once, an empty formatted data folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = self.folder / "data"
        names = ("behind", self.behind), ("proxy", self._proxy)
        places = {name: f"PROXIED://127.0.0.1:{port}," if port else "" for name, port in names}
        text = PROPERTIES.format(port=self.port, controller=free_port(), data=data, **places)
        self._properties.write_text(text, encoding="utf-8")
        if not (data / "meta.properties").exists():
            number = uuid.uuid4().int >> 1  # a first character "-" would be taken for an option
            cluster = urlsafe_b64encode(number.to_bytes(16, "big")).rstrip(b"=").decode()
            arguments = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._properties)]
            ran = subprocess.run(self._command(*arguments), capture_output=True, text=True, check=False)
            if ran.returncode:
                raise StorageError(f"{data} cannot be made ready for Kafka: {(ran.stderr or ran.stdout).strip()[-500:]}")

    def _command(self, *arguments: str) -> list[str]:
        return [str(self._java), *HEAP, "-cp", self._classes, *arguments]

    def start(self) -> None:
        """Begin, and return when it listens. Raises: StorageError with its last words where it ends or does not move on."""
        with (self.folder / "broker.log").open("ab") as log:
            command = self._command("kafka.Kafka", str(self._properties))
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self._guard = _guarding(self._process.pid)
        patience = Patience([self._process.pid])
        while not _listens(self.port):
            if self._process.poll() is not None or patience.ended():
                self.kill()
                lines = (self.folder / "broker.log").read_text(encoding="utf-8", errors="replace").splitlines()
                raise StorageError(f"The Kafka broker in {self.folder} does not listen: {' '.join(lines[-3:])}")
            time.sleep(POLL_S)

    def kill(self) -> None:
        """kill -9; its data stays as it is at that moment."""
        if self._process is not None:
            self._process.kill()
            self._end()

    def stop(self) -> None:
        """Ask it to end, then make sure that it has."""
        if self._process is not None:
            end(self._process)
            self._end()

    def _end(self) -> None:
        assert self._process is not None
        assert self._guard is not None
        assert self._guard.stdin is not None
        self._process.wait()
        self._guard.kill()  # before its pipe is closed, at which it would kill whoever has that pid by then
        self._guard.wait()
        self._guard.stdin.close()
        self._process = self._guard = None


def _guarding(pid: int) -> subprocess.Popen[bytes]:
    """A shell that kills the broker when this process ends, however it ends: then the pipe between them closes."""
    return subprocess.Popen(["sh", "-c", f"cat; kill -9 {pid}"], stdin=subprocess.PIPE, start_new_session=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(folder: Path, jars: Path = Path(JARS)) -> Iterator[Broker]:
    """A broker for as long as the block lasts. Raises: StorageError where it cannot be had."""
    broker = Broker(folder, jars)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def tables(broker: Broker) -> str:
    """What puts a pipeline file's log there."""
    return f'\n[log]\nkind = "kafka"\n\n[log.kafka]\nbootstrap = "{broker.bootstrap}"\n'


@contextmanager
def of_a_story(jars: Path | None, home: Path) -> Iterator[str]:
    """A fresh broker for as long as a story lasts, and the table that puts its pipeline there; no text without ``jars``."""
    if jars is None:
        yield ""
        return
    folder = home / "story-broker"
    if (folder / "server.properties").exists():  # an earlier story's
        shutil.rmtree(folder)
    with running(folder, jars) as broker:
        yield tables(broker)
        command = f"python -m millrace.services.demo.broker --jars {jars} --folder {folder}"
        click.echo(f"KAFKA    the broker ends with the story; to look on, begin it again: {command}")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--jars", default=JARS, show_default=True, type=click.Path(path_type=Path), help="Folder of Kafka's jars.")
@click.option("--folder", default=".kafka/broker", show_default=True, type=click.Path(path_type=Path), help="Of its data.")
@click.option("--port", default=0, metavar="N", help="Where it listens; 0 (default): where it did before, else a free port.")
def main(jars: Path, folder: Path, port: int) -> None:
    """Run a Kafka broker until Ctrl-C.

    Example: python -m millrace.services.demo.broker --folder .kafka/broker
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    broker = Broker(folder, jars, port)
    broker.start()
    click.echo(broker.bootstrap)
    click.echo(f"In a pipeline file:\n{tables(broker)}", err=True)
    with suppress(KeyboardInterrupt):
        signal.pause()
    broker.stop()


if __name__ == "__main__":
    main()
