"""What a process of a pod has in its memory, as root of the node reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

CHUNK = 1 << 24  # bytes that are read at once


def processes_of(pod_uid: str, name: str) -> list[int]:
    """Those of a pod that run a program."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            program = place.joinpath("cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            cgroup = place.joinpath("cgroup").read_text().replace("_", "-")
        except OSError:  # it has ended
            continue
        if program.rpartition("/")[2] == name and pod_uid in cgroup:
            found.append(int(place.name))
    return found


def texts_in_memory(pid: int, texts: Sequence[str]) -> set[str]:
    """Those of ``texts`` in what the process has written; its environment and arguments, on the stack, are not looked at."""
    needles = {text: text.encode() for text in texts}
    overlap = max(map(len, needles.values()), default=1) - 1
    found: set[str] = set()
    for chunk in _written(pid, overlap):
        found |= {text for text, needle in needles.items() if needle in chunk}
    return found


def _written(pid: int, overlap: int) -> Iterator[bytes]:
    """Its writable memory but the stack, in chunks that overlap by so many bytes."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            if "rw" not in rights or line.endswith("[stack]"):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            for at in range(start, end, CHUNK):
                memory.seek(at)
                try:
                    yield memory.read(min(CHUNK + overlap, end - at))
                except OSError:  # it was given back meanwhile, or is the kernel's
                    continue
