"""A solution under way in a thread of its own, that answers from a row fixed in advance: row counts decide, never timing.

Where a solve falls due, what it follows from is copied and learning goes on; where the next one falls due, the solution takes
effect, and learning waits for it if it is not there yet. Threads of BLAS are a setting of the whole process, so it has as many
here as in learning (streams/branch/host.py). SciPy's LAPACK keeps Python's lock while it computes and NumPy's does not.
So what takes long must be NumPy's, or learning stands still all the same: ``apart`` in normal_equations.py.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from millrace.learners.analytic.normal_equations import Solution
from millrace.learners.protocol import Value

NEXT = "next_"  # before the names of a solution that does not answer yet


class BackgroundSolve:
    """At most one solution under way."""

    def __init__(self) -> None:
        self._coming: Future[Solution] | None = None
        self._rows = 0  # learned rows that it follows from

    def begin(self, solve: Callable[[], Solution], rows: int) -> None:
        """Compute what ``solve`` gives, which follows from ``rows`` learned rows and shares no array with the learner."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="solve")
        self._coming, self._rows = thread.submit(solve), rows
        thread.shutdown(wait=False)  # it ends with this solution

    def take(self) -> tuple[Solution, int] | None:
        """The solution under way, waited for, and the rows that it follows from; None where there is none.

        Raises: LearnerError where it could not be solved.
        """
        coming = self._coming
        self.drop()
        return None if coming is None else (coming.result(), self._rows)

    def drop(self) -> None:
        """Let it never answer."""
        self._coming = None

    def derived(self) -> dict[str, Value]:
        """The solution under way, waited for: a fraction of what it follows from. Raises: as ``take``."""
        return {} if self._coming is None else derived(self._coming.result(), self._rows, NEXT)

    def load(self, state: dict[str, Value]) -> None:
        """Go on with the solution under way in ``state``, or with none."""
        self.drop()
        if NEXT + "solved_rows" in state:
            self._coming = Future()
            solution, self._rows = restored(state, NEXT)
            self._coming.set_result(solution)


def derived(solution: Solution, rows: int, prefix: str) -> dict[str, Value]:
    """What a state says of a solution, on copies."""
    centre = {} if solution.centre is None else {prefix + "solved_centre": solution.centre.copy()}
    return centre | {
        prefix + "weights": solution.weights.copy(order="F"),
        prefix + "intercept": solution.intercept.copy(),
        prefix + "residual": solution.residual,
        prefix + "gamma": solution.gamma,
        prefix + "solved_rows": rows,
    }


def restored(state: dict[str, Value], prefix: str) -> tuple[Solution, int]:
    """The solution that ``derived`` told of, on copies, and the rows that it follows from."""
    weights, intercept = np.array(state[prefix + "weights"], order="F"), np.array(state[prefix + "intercept"])
    stored = state.get(prefix + "solved_centre")
    centre = None if stored is None else np.array(stored)
    solution = Solution(weights, intercept, state[prefix + "residual"], state[prefix + "gamma"], centre=centre)
    return solution, state[prefix + "solved_rows"]
