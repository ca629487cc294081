"""English sentences that every machine with Python has: its own manual, and the descriptions of scikit-learn's data.

They are read where a base is built, and ship nowhere else: the tokenizer learns its words from them, and captions
quote them.
"""

import re
from importlib.resources import files

_SENTENCE = re.compile(r"[A-Z][a-z]+ [A-Za-z ,;'()-]{15,220}\.")


def written_sentences(without: frozenset[str]) -> tuple[str, ...]:
    """Sentences of letters and simple punctuation, in the order of the text, each of them once.

    Args:
        without: words, in small letters, that none of them holds.
    """
    from pydoc_data.topics import topics

    texts = list(topics.values())
    described = files("sklearn") / "datasets" / "descr"
    texts += [
        file.read_text(encoding="utf-8")
        for file in sorted(described.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".rst")
    ]
    found = _SENTENCE.findall(" ".join(" ".join(texts).split()))
    return tuple(dict.fromkeys(s for s in found if without.isdisjoint(re.findall(r"[a-z]+", s.lower()))))
