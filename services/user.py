"""Who decides: the name that decisions keep of the user who runs a command."""

from __future__ import annotations

import getpass
import os


def user_name() -> str:
    """The user's name, or `uid-10001` where that user has no name here, as in most containers.

    `getpass` looks into the environment (LOGNAME, USER), then into the password database.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the latter since Python 3.13
        return f"uid-{os.getuid()}"
