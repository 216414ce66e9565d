"""The pipeline file, the environment and flags, read once."""
