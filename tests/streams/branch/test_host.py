"""What numerics depend on: recorded in full, set exactly, compared without the release."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from millrace.services.config.kernels import FEATURES, SETTINGS
from millrace.streams.branch.host import folds_alike, same_numerics, this_host, use_threads
from millrace.streams.journal.entries import Host


@pytest.mark.parametrize("threads", [1, 2])
def test_every_blas_uses_exactly_the_threads_it_was_told(threads: int) -> None:
    """A sum over another number of threads is another sum."""
    with threadpool_limits():  # put back afterwards
        use_threads(threads)
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {threads}


def test_the_limit_reaches_the_blas_that_a_learner_loads_later() -> None:
    """In a fresh process: the learners' BLAS comes with scipy, which nothing imports before it is used."""
    code = (
        "from threadpoolctl import threadpool_info\n"
        "from millrace.learners.analytic.linalg import blas\n"
        "from millrace.streams.branch.host import use_threads\n"
        "use_threads(1)\n"
        "blas()\n"
        "pools = [pool for pool in threadpool_info() if pool['user_api'] == 'blas']\n"
        "print(len(pools), {pool['num_threads'] for pool in pools})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "{1}"]  # numpy's and scipy's


def test_the_host_record_is_the_same_each_time_and_names_processor_and_blas() -> None:
    """Else no two states could be compared bit for bit."""
    host = this_host(1)
    assert host == this_host(1) and host.threads == 1 and host.millrace
    assert "numpy" in host.blas and "scipy" in host.blas and len(host.cpu.split()) >= 1


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("cpu", "another", False),
        ("blas", "another", False),
        ("threads", 2, False),
        ("torch", "2.9", False),
        ("millrace", "9", True),
        ("python", "3.10", False),
    ],
)
def test_states_are_compared_bit_for_bit_where_all_but_the_release_is_equal(field: str, value: object, same: bool) -> None:
    """Another release folds alike, or raises its learner's revision."""
    host = this_host(1)
    assert same_numerics(host, msgspec.structs.replace(host, **{field: value})) is same


def test_the_python_is_named_and_compared_only_where_a_learners_numbers_pass_through_its_floats() -> None:
    """A record that does not name it is written as before there was the key, and is compared as before."""
    plain, named = this_host(1), this_host(1, through_python=True)
    assert named.python == ".".join(map(str, sys.version_info[:2])) and folds_alike(plain) and folds_alike(named)
    assert not folds_alike(msgspec.structs.replace(named, python="3.10"))
    assert "python" not in msgspec.to_builtins(plain)
    assert msgspec.convert(msgspec.to_builtins(plain), Host) == plain
    assert msgspec.convert(msgspec.to_builtins(named), Host) == named


NAMED = "from millrace.streams.branch.host import AVX2, this_host; print(this_host(1, pinned=True).cpu == AVX2)"


@pytest.mark.parametrize(
    ("more", "before", "named"),
    [
        ({}, "", "True"),
        ({"OPENBLAS_CORETYPE": "Nehalem"}, "", "False"),
        ({}, "import sys, types; sys.modules['torch'] = types.ModuleType('torch'); ", "False"),
    ],
    ids=["pinned", "another BLAS", "torch, of which it was not measured"],
)
def test_kernels_are_named_only_where_they_run(more: dict[str, str], before: str, named: str) -> None:
    """In a process that was started with them; the libraries themselves are asked, not the environment."""
    if not {*Path("/proc/cpuinfo").read_text().split()} >= FEATURES:
        pytest.skip("this processor has no AVX2, or no FMA")
    done = subprocess.run(
        [sys.executable, "-c", before + NAMED], env=os.environ | SETTINGS | more, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [named]
