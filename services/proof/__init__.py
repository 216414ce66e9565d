"""Versions folded again and certified."""
