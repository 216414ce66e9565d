"""Served predictions and the labels that come late for them."""
