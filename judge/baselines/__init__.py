"""Classifiers with fixed categories from the literature, as baselines."""
