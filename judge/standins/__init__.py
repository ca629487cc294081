"""Stand-ins for real data and models: digits, conversations about them, and models with random weights."""
