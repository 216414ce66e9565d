"""`make run`: a story played with the shipped commands, and its report."""
