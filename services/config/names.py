"""Names: what they may be made of, and the branch that a pipeline begins with."""

NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
BRANCH = "main"
