"""Plain words for the names of attacks, of checks of attacks, and of ways to store a picture."""

from .words import plain

ATTACKS = {
    "fgsm": "FGSM",
    "pgd": "PGD",
    "apgd": "APGD",
    "apgd_cross_entropy": "APGD, cross-entropy",
    "fab": "FAB",
    "square": "Square, by queries",
    "deepfool": "DeepFool",
    "gaussian_noise": "random noise",
}
CHECKS = {
    "zero_epsilon": "no change changes no verdict",
    "more_epsilon": "a larger change never breaks fewer",
    "huge_epsilon": "a huge change breaks everything",
    "best_kept": "the best point is kept",
    "zero_gradients": "gradients are not zero",
    "step_size": "steps fit the budget",
    "memory": "steps build on each other",
    "one_step": "many steps beat one",
    "doubled_steps": "twice the steps change little",
    "black_box": "gradients beat queries",
    "transfer": "pictures made for another fool it less",
    "deterministic": "two passes agree",
    "logits": "margins are logits",
    "real_path_clean": "attacked and deployed path agree, clean",
    "real_path_attacked": "attacked and deployed path agree, attacked",
    "text": "whether it reads the prompt",
}
STORAGE = {"raw": "as floats", "8bit": "as 8-bit colours"}
PARTS = {"text": "text", "image": "image", "both": "image and text"}
"""What of a question an attacker changes."""
KNOWLEDGE = {"white_box": "gradients and queries", "queries": "queries only"}


def attack_name(name: str) -> str:
    """What tables and figures call an attack."""
    return plain(name, ATTACKS)


def check_name(name: str) -> str:
    """What a check of an attack looks for."""
    return plain(name, CHECKS)


def storage_name(name: str) -> str:
    """`as JPEG 75` for `jpeg:75`."""
    kind, _, quality = name.partition(":")
    return STORAGE.get(name) or f"as {kind.upper()} {quality}".rstrip()
