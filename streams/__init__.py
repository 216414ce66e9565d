"""Streams: from a record in the log to a lesson learned, and the journal that proves it."""
