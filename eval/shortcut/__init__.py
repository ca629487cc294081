"""Check that the text of training rows does not reveal their label."""
