"""Attacks on pixels within a budget: by gradient, by the nearest boundary, by queries alone, for all images at once."""
