"""Metrics of arrays and of judged rows, confidence intervals and significance tests."""
