"""What plays the real thing here: digits, conversations about them, and models of random weights."""
