"""How a branch begins, comes back, ends and is proved."""
