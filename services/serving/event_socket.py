"""How events of Ray's processes reach `up`: a Unix socket in the folder of its sockets, a message each.

What was sent lies with the kernel, so it arrives though its sender is dead by then. A sender never waits: where `up` does not
read, events are counted, and the number goes with the next one that is sent.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from millrace.services.serving.events import Event, event_of

NAME = "events"  # of the socket
LONGEST = 1 << 18  # bytes of an event
QUIET_S = 30.0  # between two events of the same words of one process
SENTENCES = 1000  # that are remembered for it
BACKLOG = 128  # processes that connect at once


class Repeats(logging.Filter):
    """Lets a sentence through once in ``QUIET_S``, then with how often it was said meanwhile: a disk may be full for days."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, tuple[float, int]] = {}  # sentence -> when it was let through, and how often said since

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is let through."""
        sentence = record.getMessage()
        at_s, more = self._said.pop(sentence, (0.0, 0))
        if record.created - at_s < QUIET_S:
            self._said[sentence] = (at_s, more + 1)
            return False
        if len(self._said) >= SENTENCES:
            del self._said[next(iter(self._said))]
        self._said[sentence] = (record.created, 0)
        if more:
            record.msg, record.args = f"{sentence} (It was said {more} times more.)", None
        return True


class EventSender(logging.Handler):
    """Sends what this process says."""

    def __init__(self, path: Path, process: str, branch: str) -> None:
        super().__init__()
        self.lost = 0  # events that could not be sent, since the last that could
        self._path = str(path)
        self._process = process
        self._branch = branch
        self._socket: socket.socket | None = None
        self.addFilter(Repeats())

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, or count it."""
        event = event_of(record, self._process, self._branch)
        if self.lost:
            event = msgspec.structs.replace(event, message=f"({self.lost} events before this are lost.) {event.message}")
        try:
            self._connected().send(msgspec.json.encode(event), socket.MSG_DONTWAIT)
            self.lost = 0
        except BlockingIOError:
            self.lost += 1
        except OSError:
            self.lost += 1
            self._disconnect()

    def close(self) -> None:
        """Nothing is sent from now on."""
        self._disconnect()
        super().close()

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _connected(self) -> socket.socket:
        if self._socket is None:
            with ExitStack() as closing:
                new = closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                new.setblocking(False)
                new.connect(self._path)
                self._socket = new
                closing.pop_all()
        return self._socket


def send_events(folder: Path, process: str, branch: str) -> None:
    """From now on `up`, whose sockets lie in ``folder``, prints what this process says, as ``process``.

    What ends a thread is said too. Of libraries warnings are.
    """
    logging.getLogger().addHandler(EventSender(folder / NAME, process, branch))
    log = logging.getLogger("millrace")
    log.setLevel(logging.INFO)
    threading.excepthook = lambda failed: log.error(
        "A thread (%s) ended unforeseen.", failed.thread and failed.thread.name, exc_info=failed.exc_value
    )


@contextmanager
def received(folder: Path, show: Callable[[Event], None]) -> Iterator[None]:
    """Every event that is sent to ``folder`` is shown for as long as the block runs, and what was sent by its end, too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(folder / NAME))
        listener.listen(BACKLOG)
        listener.setblocking(False)
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=_receive, args=(listener, theirs, show), name="events", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ours.close()
            thread.join()
            theirs.close()


def _receive(listener: socket.socket, end: socket.socket, show: Callable[[Event], None]) -> None:
    """Until ``end`` is closed by the other side and nothing waits any more."""
    with selectors.DefaultSelector() as selector:
        for known in (listener, end):
            selector.register(known, selectors.EVENT_READ)
        timeout: float | None = None
        while keys := selector.select(timeout):
            for key, _ in keys:
                waiting = key.fileobj
                assert isinstance(waiting, socket.socket)
                if waiting is end:
                    selector.unregister(end)
                    timeout = 0
                elif waiting is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                elif not _shown(waiting, show):
                    selector.unregister(waiting)
                    waiting.close()
        for key in selector.get_map().values():
            if isinstance(key.fileobj, socket.socket) and key.fileobj is not listener:
                key.fileobj.close()


def _shown(connection: socket.socket, show: Callable[[Event], None]) -> bool:
    """Whether there was an event; none where the sender has ended."""
    try:
        data = connection.recv(LONGEST)
    except OSError:
        return False
    if data:
        show(msgspec.json.decode(data, type=Event))
    return bool(data)
