"""Which ports the processes under one process listen on, read from Linux's /proc; elsewhere nothing is found."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

LISTENS = "0A"  # a socket's state in /proc/net/tcp


def listeners(pid: int) -> list[str]:
    """Address and process of everything that ``pid`` and its descendants listen on, as sorted lines."""
    sockets = _listening()
    lines = {
        f"{sockets[inode]}  {title(member_pid)}"
        for member_pid in family(pid)
        for inode in _inodes(member_pid)
        if inode in sockets
    }
    return sorted(lines)


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in _text(path).split()]
    return [pid, *(below for child in children for below in family(child))]


def _listening() -> dict[str, str]:
    """Inode -> address:port of every TCP socket that listens."""
    addresses = {}
    for name in ("tcp", "tcp6"):
        for line in _text(Path(f"/proc/net/{name}")).splitlines()[1:]:
            cells = line.split()
            if cells[3] == LISTENS:
                addresses[cells[9]] = address(cells[1])
    return addresses


def address(local: str) -> str:
    """An address as the kernel writes it: words of four bytes in the machine's (little-endian) order, then the port.

    >>> address("0100007F:1F40"), address("0000000000000000FFFF00000100007F:1F41"), address("0" * 32 + ":1F40")
    ('127.0.0.1:8000', '127.0.0.1:8001', '[::]:8000')
    """
    host, port = local.split(":")
    raw = b"".join(bytes.fromhex(host[at : at + 8])[::-1] for at in range(0, len(host), 8))
    number = IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw).ipv4_mapped or IPv6Address(raw)
    return f"[{number}]:{int(port, 16)}" if number.version == 6 else f"{number}:{int(port, 16)}"


def _inodes(pid: int) -> Iterator[str]:
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = str(link.readlink())
            if target.startswith("socket:["):
                yield target[8:-1]
    except OSError:  # the process has ended meanwhile, or is another user's
        return


def title(pid: int) -> str:
    """A process's name, or nothing where it has ended, whether its parent has heard of it or not."""
    name, _, state = _text(Path(f"/proc/{pid}/stat")).partition("(")[2].rpartition(") ")
    return "" if state.startswith("Z") else name


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
