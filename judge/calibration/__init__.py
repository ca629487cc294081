"""What a score promises: temperatures, conformal thresholds, cutoffs per category, and where a promise ends."""
