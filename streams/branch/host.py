"""What numerics depend on, and how it is set: the processor, the BLAS, the threads, and of some learners the Python.

In place of the processor stand the kernels, where they are pinned (services/config/kernels.py). How that was measured, and why
not for torch: docs/decisions/0009-pinned-kernels.md.
"""

from __future__ import annotations

import platform
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from threadpoolctl import threadpool_info, threadpool_limits

from millrace.learners.distribution import release
from millrace.streams.journal.entries import Host

AVX2 = "x86_64 kernels avx2"  # in place of a processor's name


def use_threads(threads: int) -> None:
    """Let every BLAS in this process use exactly ``threads`` threads."""
    _load_blas()
    threadpool_limits(limits=threads)


def this_host(threads: int, through_python: bool = False, pinned: bool = False) -> Host:
    """This process's host record; with the Python where a learner's numbers pass ``through_python``'s floats.

    ``pinned``: with the kernels in place of the processor, if those are what runs and no torch does.
    From 3.12 on Python's ``sum`` of floats carries what rounding loses along, so its last bits are others than before.
    """
    cpu = AVX2 if pinned and _torch() is None and runs_avx2() else _cpu()
    return Host(cpu, _blas(), threads, _torch(), release(), _python() if through_python else None)


def folds_alike(host: Host) -> bool:
    """Whether a state folded on ``host`` is compared bit for bit with one that this process folds."""
    return same_numerics(host, this_host(host.threads, host.python is not None, host.cpu == AVX2))


def same_numerics(host: Host, other: Host) -> bool:
    """Whether states folded on both are compared bit for bit."""
    ours, theirs = ((machine.cpu, machine.blas, machine.threads, machine.torch, machine.python) for machine in (host, other))
    return ours == theirs


def runs_avx2() -> bool:
    """Whether every BLAS here, and NumPy's own loops, run the code of AVX2: neither older nor newer, as the libraries say."""
    _load_blas()
    blas = {pool.get("architecture") for pool in threadpool_info() if pool["user_api"] == "blas"}
    try:
        introspect = import_module("numpy.lib.introspect")  # since NumPy 2.1
    except ImportError:
        return False
    loops = {loop["current"] for loop in introspect.opt_func_info("^(exp|log)$", "float64")["exp"].values()}
    return blas == {"Haswell"} and all(name == "X86_V3" or "AVX2" in name for name in loops)


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = dict(line.partition("\t")[::2] for line in lines[:30])
    names = [value.strip(" \t:") for key, value in facts.items() if key.strip() in ("vendor_id", "cpu family", "model")]
    return " ".join([platform.machine(), *names])


def _load_blas() -> None:
    """Load the BLAS that scipy brings, which no limit would reach otherwise; numpy's is here already."""
    import_module("scipy.linalg")


def _blas() -> str:
    _load_blas()
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    names = sorted({f"{pool['internal_api']} {pool['version']} {pool.get('architecture')}" for pool in pools})
    return ", ".join(["numpy " + version("numpy"), "scipy " + version("scipy"), *names])


def _torch() -> str | None:
    return version("torch") if "torch" in sys.modules else None  # installed but unused, it changes nothing
