"""Attacks on our classifiers: victims, suites of attacks, trials and their summary."""
