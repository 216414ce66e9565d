"""Pages of the documentation, block by block, and a folder in which a reader does what they say.

A page is played from its first block to its last, in one folder, with `millrace` on the path:

- ```toml``` whose first line is ``# NAME.toml`` is written as that file, ``# at the end of NAME.toml`` is added to it, and the
  file must then load
- ```sh``` and ```bash``` run, and must end with 0; one that is a single `millrace up NAME.toml` serves it until the page ends
- ```console```: what stands behind ``$`` runs, and the lines below it are printed, as they stand but for numbers and hashes;
  ``...`` stands for any lines
- ```python``` whose first line is ``# NAME.py`` is written as that file; another runs
- ```text``` is read by people alone, and so is ```yaml``` here; tests/deploy renders the chart with it

``<!-- not run: WHY -->`` before a block leaves it out, and `test_pages.py` counts those.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from pipelines import MILLRACE, TIMEOUT_S, clean_environment

from millrace.services.config.config import load_pipeline

ROOT = Path(__file__).resolve().parents[3]
KINDS = {"toml", "sh", "bash", "console", "python", "text", "yaml"}
FENCE = re.compile(r"^(?:<!-- not run: (?P<why>[^\n]*) -->\n+)?^```(?P<kind>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[0-9a-f]{12,}|\d[\d.,:]*")
UP = re.compile(r"millrace up (\S+\.toml)(?: (.*))?")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str  # its path from the repository's root
    line: int
    kind: str
    text: str
    why: str | None = None  # it is not run

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{self.page}:{self.line}"

    def named(self, lead: str, ending: str) -> str | None:
        """The file that its first line names after ``lead``."""
        match = re.match(rf"# {lead}(\S+{ending})$", self.text.partition("\n")[0])
        return match and match[1]


def blocks(page: str) -> list[Block]:
    """All blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = [
        Block(page, text.count("\n", 0, match.start("kind")) + 1, match["kind"], match["text"], match["why"])
        for match in FENCE.finditer(text)
    ]
    assert len(fenced) * 2 == len(re.findall(r"^```", text, re.MULTILINE)), f"{page}: a fence is not closed"
    return fenced


Serve = Callable[[Path, str, Sequence[str]], AbstractContextManager[dict[str, str]]]  # folder, file, options -> addresses


@dataclass
class Reader:
    """Somebody who does what pages say, in a folder."""

    folder: Path
    addresses: dict[str, str] = field(default_factory=dict)  # of a page -> here
    serve: Serve | None = None  # what is done for `millrace up`
    ending: ExitStack = field(default_factory=ExitStack)
    printed: list[str] = field(default_factory=list)  # by each block that ran

    def __post_init__(self) -> None:
        """Put ``millrace``, as it is tested here, first on the path."""
        script = self.folder / "bin" / "millrace"
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {shlex.join(MILLRACE)} "$@"\n')
        script.chmod(0o755)

    def read(self, *pages: Sequence[Block]) -> None:
        """Play pages one after the other."""
        for block in (block for page in pages for block in page if block.why is None):
            self.play(block)

    def play(self, block: Block) -> None:
        """Do what one block says."""
        play = {"toml": self._configure, "console": self._compare, "python": self._python, "sh": self._shell}
        {"bash": self._shell, "text": lambda block: None, "yaml": lambda block: None, **play}[block.kind](block)

    def _configure(self, block: Block) -> None:
        whole, part = block.named("", r"\.toml"), block.named("at the end of ", r"\.toml")
        assert whole or part, f"{block.place}: the first line names no file"
        path = self.folder / str(whole or part)
        before = "" if whole else path.read_text(encoding="utf-8") + "\n"
        path.write_text(before + self._here(block.text), encoding="utf-8")
        load_pipeline(path)

    def _shell(self, block: Block) -> None:
        if up := UP.fullmatch(block.text.partition("  #")[0].strip()):
            assert self.serve is not None, f"{block.place}: nothing is served in this test"
            words = shlex.split(up[2] or "")
            self.addresses |= self.ending.enter_context(self.serve(self.folder, up[1], words))
        else:
            self._run(block, ["bash", "-euo", "pipefail", "-c", self._here(block.text)])

    def _python(self, block: Block) -> None:
        if name := block.named("", r"\.py"):
            (self.folder / name).write_text(block.text, encoding="utf-8")
        else:
            self._run(block, [sys.executable, "-c", self._here(block.text)])

    def _compare(self, block: Block) -> None:
        lines = block.text.splitlines()
        assert lines[0].startswith("$ "), f"{block.place}: begins with no command"
        commands = iter(groupby(lines, key=lambda line: line.startswith("$ ")))
        for _, command_lines in commands:
            script = "\n".join(line[2:] for line in command_lines)
            shown = list(next(commands, (False, iter(())))[1])
            printed = self._run(block, ["bash", "-euo", "pipefail", "-c", self._here(script)])
            self._find(block, shown, printed)

    def _find(self, block: Block, shown: Sequence[str], printed: str) -> None:
        """Every shown line is among those printed, in order."""
        rest = iter(map(_masked, printed.splitlines()))
        for line in shown:
            if line != "..." and _masked(line) not in rest:  # raised: pytest indents the lines of an assertion's message
                raise AssertionError(f"{block.place}: shows\n{line}\nand there was printed\n{printed}")

    def _run(self, block: Block, command: Sequence[str]) -> str:
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{ROOT / '.tools' / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=clean_environment() | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=2 * TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{block.place}: exit {done.returncode}\n{block.text}\n{done.stdout}\n{done.stderr}"
        self.printed.append(done.stdout)
        return done.stdout + done.stderr

    def _here(self, text: str) -> str:
        for theirs, ours in self.addresses.items():
            text = text.replace(theirs, ours)
        return text


def _masked(line: str) -> str:
    """A line without what differs from run to run: numbers, hashes, and how wide columns are."""
    return " ".join(NUMBER.sub("#", line).split())


@contextmanager
def reading(folder: Path, addresses: dict[str, str] | None = None, serve: Serve | None = None) -> Iterator[Reader]:
    """A reader, with what was served ended afterwards."""
    reader = Reader(folder, dict(addresses or {}), serve)
    with reader.ending:
        yield reader
