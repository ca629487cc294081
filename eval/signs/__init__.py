"""Measures on signs: an encoder by itself, words that no lesson holds, and conditions on the prompt."""
