"""Versions outside: the MLflow mirror and exported folders."""
