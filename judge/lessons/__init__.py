"""What a run keeps of its lessons: how far they reached, and which categories they showed."""
