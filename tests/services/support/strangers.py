"""Commands run as a user whom the machine has no name for, as in a container with any uid."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from pipelines import MILLRACE, TIMEOUT_S, clean_environment, lacks

STRANGER = 10001
# It may read everything, since Python or the checkout may lie where root alone looks; it may write only where it owns.
READS = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def as_stranger(command: list[str], *groups: int) -> list[str]:
    """A command as user and group 10001, and in ``groups``; skips the test where we may not."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        lacks("only root can run a command as another user, by setpriv of util-linux")
    others = [f"--groups={','.join(map(str, groups))}"] if groups else ["--clear-groups"]
    names = [word for name in ("USER", "LOGNAME", "HOME", "LNAME", "USERNAME") for word in ("-u", name)]
    return ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", *others, *READS, "env", *names, *command]


def stranger_millrace(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`millrace WORDS` as that user, in a folder that becomes its own."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    command, environment = as_stranger([*MILLRACE, *words]), clean_environment()
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
