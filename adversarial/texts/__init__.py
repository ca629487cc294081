"""Attacks through the prompt: families of misleading prompts, black-box searches, and gradient searches over tokens."""
