"""Attacks through the prompt: families of misleading prompts, searches that ask, and searches by gradient."""
