"""`millrace rollback WORDS`, with the moments at which its steps were over as a JSON line on stdout, after its own words.

The moments are seconds of the machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from millrace.services.cli import main
from millrace.services.decisions import decide, rollback

over = {"import": time.monotonic()}


def begins(step: str, before: Callable[..., Any]) -> Callable[..., Any]:
    """The same, which says that ``step`` is over when it is called."""

    def call(*arguments: Any) -> Any:
        over[step] = time.monotonic()
        return before(*arguments)

    return call


if __name__ == "__main__":
    rollback.choose_rollback = begins("pipeline file", rollback.choose_rollback)
    decide.decide = begins("plan", decide.decide)
    main(["rollback", *sys.argv[1:]], prog_name="millrace", standalone_mode=False)
    print(json.dumps(over | {"ledger entry": time.monotonic()}))
