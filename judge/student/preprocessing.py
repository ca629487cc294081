"""What a tokenizer of CLIP or SigLIP does to texts, recorded as settings: keys of an exported student's manifest."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextPreprocessing:
    """How texts are tokenised."""

    context: int
    """Tokens of one window, special ones included."""
    pad: int
    """Id of the padding token."""
    fill: bool
    """Pad to the context (SigLIP) instead of to the longest text (CLIP)."""
    windows: int
    """Most windows that one text may take."""
