"""Requests answered over HTTP and gRPC from what a replica holds."""
