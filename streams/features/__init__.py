"""Columns into the matrix x that learners read."""
