"""The log, journals and ledger in SQLite files."""
