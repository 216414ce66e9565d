"""The door to scipy.linalg. It opens at the first call, for importing it takes longer than a command that learns nothing."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def blas() -> Any:
    """The routines of BLAS; called once a product, which costs a look-up."""
    from scipy.linalg import blas

    return blas


@cache
def lapack() -> Any:
    """The routines of LAPACK."""
    from scipy.linalg import lapack

    return lapack
