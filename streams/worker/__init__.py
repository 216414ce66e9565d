"""One branch, live."""
