"""What every test may ask for."""

import os
import shutil
import signal
import sys
import uuid
from pathlib import Path

import either_log
import pytest
from hypothesis import HealthCheck, settings
from pipelines import lacks

from millrace.services.demo.broker import Broker
from millrace.streams.errors import StorageError

# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]

# What an assertion in a support file compared is shown as it is for one in a test; this file's own imports come too early.
SUPPORT = {file.stem for file in (ROOT / "tests").glob("*/support/*.py")}
pytest.register_assert_rewrite(*SUPPORT - set(sys.modules))

# The same examples every time, on any machine: a failure seen once is seen again. Nothing is kept on disk, nothing is timed.
settings.register_profile(
    "millrace", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("millrace")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets: $MILLRACE_DATA, else ../shared/data beside the repository."""
    named = os.environ.get("MILLRACE_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder; MILLRACE_DATA names another")
    return folder


@pytest.fixture(scope="session")
def broker(tmp_path_factory):
    """A real Kafka broker of this session's own, which a test may kill and must start again."""
    home = os.environ.get("KAFKA_HOME")
    folder = tmp_path_factory.mktemp("kafka")
    try:
        cluster = Broker(folder, Path(home) / "libs" if home else ROOT / ".kafka" / "jars")
    except StorageError as error:
        lacks(f"no Kafka: {error}")
    cluster.start()
    with either_log.swept():
        yield cluster
    cluster.stop()
    shutil.rmtree(folder)  # its files are large, and pytest would keep them


@pytest.fixture(scope="session")
def clients() -> Path:
    """The Python that has the clients that others wrote."""
    python = ROOT / ".venv-clients" / "bin" / "python"
    if not python.exists():
        lacks("`make clients` could not make .venv-clients here")
    return python


@pytest.fixture
def either(request, tmp_path):
    """A log of the kind that ``request.param`` says, with names of its own."""
    if request.param == "sqlite":
        yield either_log.on_sqlite(tmp_path)
    else:
        with either_log.swept():
            yield from either_log.on_kafka(request.getfixturevalue("broker").bootstrap, f"t{uuid.uuid4().hex[:8]}")


@pytest.fixture
def on_kafka(broker):
    """A log on the broker, with names of its own."""
    with either_log.swept():
        yield from either_log.on_kafka(broker.bootstrap, f"t{uuid.uuid4().hex[:8]}")
