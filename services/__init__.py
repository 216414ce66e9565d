"""Services: configuration, the command line, and what puts the rooms together."""
