"""Calibration: temperatures, conformal thresholds, thresholds per category, and the policies a promise covers."""
