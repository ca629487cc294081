"""Frozen image and text encoders, their features, and what makes them robust."""
