"""The command line."""

from millrace.services.cli.commands import main

__all__ = ["main"]
