"""What an attack refuses, and why."""


class AttackError(ValueError):
    """Input that cannot be attacked, or an attack that cannot run here; the message says what to do."""
