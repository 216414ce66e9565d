"""The state of a branch and the only code that changes it."""
