"""Why classifiers fail: shift between sources, clusters of errors, a case study of style and layout, confidence."""
