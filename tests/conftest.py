"""What every test may ask for."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]

# The same examples every time, on any machine: a failure seen once is seen again, and nothing is kept on disk.
settings.register_profile("millrace", derandomize=True, deadline=None, database=None)
settings.load_profile("millrace")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets: $MILLRACE_DATA, else ../shared/data beside the repository."""
    named = os.environ.get("MILLRACE_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder; MILLRACE_DATA names another")
    return folder
