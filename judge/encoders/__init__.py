"""Frozen image-text encoders, their features on disk, definitions as phrases, and robust fine-tuning."""
