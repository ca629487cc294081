"""Honesty checks: whether an attack was an attack, and whether the victim is the thing that is deployed."""
