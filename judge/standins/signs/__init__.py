"""Signs: scenes of pictograms that a person understands at a glance, with real categories and harmless pictures."""
