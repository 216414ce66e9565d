"""Pinned numerical kernels: which code NumPy, SciPy and torch run, whatever more the processor could do.

They choose when they are loaded, by the environment, so this is done before anything of ours loads them. It is what
services/config/config.py cannot do, since a configuration record names learners, which load NumPy.

Source: OpenBLAS, driver/others/dynamic.c; numpy.org/doc/stable/reference/simd; pytorch.org, ATen/native/DispatchStub.cpp;
oneapi-src.github.io/oneDNN, CPU dispatcher control.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from millrace.learners.errors import ConfigError

OWN, AVX2 = "own", "avx2"
SETTINGS: Mapping[str, str] = {
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V4",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}  # of avx2; older releases of NumPy have the first names of what is above it, newer ones the last
FEATURES = {"avx2", "fma"}  # that the processor must have for it, as /proc/cpuinfo names them


def pin(path: Path, flags: Iterable[str]) -> None:
    """Do what the key ``kernels`` of a pipeline file says, before it is read whole; whoever is started from here does as we do.

    Raises: ConfigError where this process cannot run them.
    """
    if _asked(path, flags) != AVX2 or is_pinned():
        return
    if "numpy" in sys.modules:
        raise ConfigError(unpinned(path))
    if missing := FEATURES - _features():
        raise ConfigError(
            f'{path}: kernels = "{AVX2}": this processor has no {" and no ".join(sorted(missing))}; leave the key out.'
        )
    for name, value in SETTINGS.items():
        if os.environ.setdefault(name, value) != value:
            raise ConfigError(f'{path}: kernels = "{AVX2}": {name} is {os.environ[name]!r} in the environment. Unset it.')


def is_pinned() -> bool:
    """Whether the environment pins them, for what was loaded since."""
    return all(os.environ.get(name) == value for name, value in SETTINGS.items())


def unpinned(path: Path) -> str:
    """What to do where NumPy was there first."""
    words = " ".join(f"{name}='{value}'" for name, value in SETTINGS.items())
    return f'{path}: kernels = "{AVX2}": NumPy is loaded already, with other kernels. Start this program with: env {words}'


def _asked(path: Path, flags: Iterable[str]) -> str:
    """The key's value: the file's, else the environment's, else a flag's, the last that says it."""
    try:
        told = [tomllib.loads(path.read_text(encoding="utf-8-sig")).get("kernels")]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        told = []  # whoever reads the file says so
    told.append(os.environ.get("MILLRACE__KERNELS"))
    told += [text for key, _, text in (flag.partition("=") for flag in flags) if key.strip() == "kernels"]
    last = next((value for value in reversed(told) if value is not None), OWN)
    return str(last).strip().strip("\"'")


def _features() -> set[str]:
    """Of the processor; those wanted where it cannot be asked, as on systems without /proc."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    return FEATURES if flags is None else set(flags)
