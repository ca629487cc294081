"""Cheap filters first, the student next, the judge for what is left, within a promised miss rate."""
