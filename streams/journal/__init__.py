"""What was done about the log: journals, the ledger, checkpoints, segments."""
