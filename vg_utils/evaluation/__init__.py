"""Evaluation: rows, one an expression, and what they add up to."""
