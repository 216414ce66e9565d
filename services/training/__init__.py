"""Branches learned: in this process, by shards, beside the endpoint."""
