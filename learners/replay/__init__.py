"""Networks that learn by gradient steps, with a buffer of stored rows or without one."""
