"""Learners: models that learn one pass, in batches, and whose whole state can be saved and proved."""
