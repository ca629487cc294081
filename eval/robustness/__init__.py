"""Attacks run against our classifiers: victims, suites, trials, and what came of them."""
