"""Every socket of some processes, read from /proc by itself: what listens or takes datagrams, and where."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LISTENS = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}  # the state in which others can reach it
TAKES_CONNECTIONS = 0x10000  # __SO_ACCEPTCON, of a Unix socket


@dataclass(frozen=True, slots=True)
class OpenSocket:
    """One that others can reach."""

    pid: int
    kind: str  # tcp, tcp6, udp, udp6 or unix
    local: bool  # whether this machine alone can reach it
    place: str  # port, or path; a name that begins with @ is in no folder


def open_sockets(pids: Iterable[int]) -> list[OpenSocket]:
    """Of these processes, one for each that holds it."""
    by_inode = _network() | _unix()
    found = []
    for pid in pids:
        try:
            links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:  # it has ended
            continue
        inodes = {match[1] for link in links if (match := re.fullmatch(r"socket:\[(\d+)\]", link))}
        found += [OpenSocket(pid, *by_inode[inode]) for inode in sorted(inodes & by_inode.keys())]
    return found


def is_loopback(address: str) -> bool:
    """Of an address as the kernel writes it, in words of four bytes in the machine's order.

    >>> [is_loopback(text) for text in ("0200007F", "00000000", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000")]
    [True, False, True, True]
    """
    v4 = address[-8:] if len(address) == 8 or address[:24] == "0" * 16 + "FFFF0000" else ""
    return v4[-2:] == "7F" or address == "0" * 24 + "01000000"


def _network() -> dict[str, tuple[str, bool, str]]:
    found = {}
    for kind, state in LISTENS.items():
        for line in Path(f"/proc/net/{kind}").read_text(encoding="utf-8").splitlines()[1:]:
            fields = line.split()
            address, port = fields[1].split(":")
            if fields[3] == state:
                found[fields[9]] = (kind, is_loopback(address), str(int(port, 16)))
    return found


def _unix() -> dict[str, tuple[str, bool, str]]:
    found = {}
    for line in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and int(fields[3], 16) & TAKES_CONNECTIONS:
            found[fields[6]] = ("unix", False, fields[7])
    return found
