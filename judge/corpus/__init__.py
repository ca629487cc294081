"""Pairs of prompt and generated picture, labelled on the picture, after NSFWCorpus (arXiv 2504.11707)."""
