"""Learners whose answer is linear in their features, and how rows are scaled for them."""
