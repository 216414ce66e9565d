"""Streams: from a record in the log to what is learned from it, and the journal that proves it."""
