"""Adversarial rows of a corpus: attacks on the defence that was asked for."""
