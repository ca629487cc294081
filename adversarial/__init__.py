"""Attacks on image-safety classifiers. Sees a victim only through a protocol in [0, 1] pixels."""
