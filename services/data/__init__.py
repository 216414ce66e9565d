"""Rows on their way into the log, and what could not be read."""
