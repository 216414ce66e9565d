"""Learners solved from running sums: ridge regression and its relatives."""
