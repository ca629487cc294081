"""Verdicts: from a classifier's scores, and as the row that every program reads."""
