"""What Prometheus is told of a served pipeline."""
