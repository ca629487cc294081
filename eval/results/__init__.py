"""Tables for a paper from finished runs: read (`measured`), put side by side (`lines`), written (`formats`)."""
