"""Whether the label can be read off the text alone."""
