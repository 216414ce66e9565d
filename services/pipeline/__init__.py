"""One pipeline on this machine, put together from its file."""
