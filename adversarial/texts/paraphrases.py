"""Paraphrases of prompts from a user's file, as a family of prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from adversarial.errors import AttackError

from .families import Maker, distinct
from .files import columns, read_rows, text_of
from .sentences import Target


def paraphrases(known: Mapping[str, Sequence[str]]) -> Maker:
    """A family from known paraphrases: prompt -> its paraphrases, as `read_paraphrases` returns them."""

    def make(prompt: str | None, target: Target, seed: int) -> list[str | None]:
        return distinct(prompt, list(known.get((prompt or "").strip(), ())))

    return make


def read_paraphrases(path: str | Path) -> dict[str, list[str]]:
    """Read paraphrases of prompts from a file; surrounding white space is dropped.

    `.csv`, `.tsv`: columns `prompt` and `paraphrase`; `.txt`: prompt, a tab, paraphrase; `.jsonl`, `.json`: objects
    with `prompt` and either `paraphrase` or a list `paraphrases`. A prompt may come several times.

    Raises:
        AttackError: the file cannot be read, or a row lacks one of the two.
    """
    found: dict[str, list[str]] = {}
    for number, row in enumerate(read_rows(path), 1):
        # Text files have one column, so both texts are in the line.
        if Path(path).suffix.lower() == ".txt":
            prompt, _, paraphrase = row["prompt"].partition("\t")
            row = {"prompt": prompt, "paraphrase": paraphrase}
        several = row.get("paraphrases", [row.get("paraphrase")])
        texts = [text for text in map(text_of, several) if text] if isinstance(several, list) else []
        key = text_of(row.get("prompt"))
        if key is None or not texts:
            raise AttackError(
                f"{path}, entry {number}: no prompt with a paraphrase. Columns found: "
                f"{', '.join(columns([row])) or 'none'}; needed: prompt, and paraphrase or a list paraphrases "
                "(in .txt: prompt, a tab, paraphrase)."
            )
        known = found.setdefault(key, [])
        known += [text for text in texts if text not in known]
    return found
