"""Replay without what should not have been learned: planned, run, compared, taken over."""
