"""The benchmark: predictions of any classifier, what they are worth, and why they fail."""
