"""Heads with fixed categories, as the literature has them, to compare with."""
