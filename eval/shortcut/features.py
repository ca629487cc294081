"""Features of rendered rows for the text-only classifiers of `eval.shortcut.check`."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from prompts.taxonomy import Category
from prompts.template import Chat

if TYPE_CHECKING:
    from prompts.flip import Row

Floats = NDArray[np.float64]
WORD = re.compile(r"\w+")
SHORTEST_WORD = 4
"""Shorter words of a definition ("the", "of") occur in any prompt and are ignored; numbers of any length count."""


def text_of(chat: Chat) -> str:
    """The text parts of a chat, joined by line breaks."""
    parts = (part for message in chat.messages for part in message["content"])
    return "\n".join(str(part["text"]) for part in parts if part["type"] == "text")


def words_of(text: str) -> frozenset[str]:
    """The distinct words of a text, in lower case."""
    return frozenset(WORD.findall(text.casefold()))


def explicit_features(texts: Sequence[str], prompts: Sequence[str]) -> dict[str, Floats]:
    """Features of form, (N,) each: length, lines, lines with a definition; of N texts and their prompts."""
    lines = [text.split("\n") for text in texts]
    columns = {
        "characters": [len(text) for text in texts],
        "words": [len(text.split()) for text in texts],
        "lines": [len(entry) for entry in lines],
        "share_of_lines_with_colon": [np.mean([":" in line for line in entry]) for entry in lines],
        "longest_line": [max(map(len, entry)) for entry in lines],
        "shortest_line": [min(map(len, entry)) for entry in lines],
        "prompt_characters": [len(prompt) for prompt in prompts],
        "prompt_words": [len(prompt.split()) for prompt in prompts],
        "prompt_words_elsewhere": [
            sum(text.count(word) > 1 for word in set(prompt.split()))
            for text, prompt in zip(texts, prompts, strict=True)
        ],
    }
    named = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    return named | _shapes("text", texts) | _shapes("prompt", prompts)


def _shapes(name: str, texts: Sequence[str]) -> dict[str, Floats]:
    """Which kinds of characters texts are made of, as shares, and where a prompt was cut."""
    # Prompts and policies occur in many rows.
    index = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    counts = np.array(
        [
            [
                sum(map(str.isupper, text)),
                sum(map(str.isdigit, text)),
                len(text) - len(text.encode("ascii", "ignore")),
                sum(not letter.isalnum() for letter in text),
                sum(map(str.istitle, text.split())),
                text[-1:] in ".!?",
            ]
            for text in index
        ],
        dtype=np.float64,
    ) / np.array([[max(1, len(text))] for text in index])  # fmt: skip
    kinds = ("upper", "digits", "beyond_ascii", "signs", "titles", "ended")
    return {f"{name}_{kind}": counts[[index[t] for t in texts], k] for k, kind in enumerate(kinds)}


def row_features(rows: "Sequence[Row]") -> dict[str, Floats]:
    """Features of meaning, (N,) each: which categories the prompt mentions, and where they are in the policy.

    -1 stands for "none": no category mentioned, or no single category in question (focus).
    """
    table = [_row_features(row) for row in rows]
    columns = {name: np.array([entry[name] for entry in table], dtype=np.float64) for name in table[0]}
    return (
        columns
        | _rewritings([row.wording for row in rows], "wording")
        | _rewritings([row.prompt_form for row in rows], "prompt")
    )


def _rewritings(done: Sequence[str], name: str) -> dict[str, Floats]:
    """(N,) indicators of what was done to policies or prompts; one row has several."""
    sets = [set(each.split("+")) for each in done]
    parts = sorted(set().union(*sets))
    return {f"{name}_{part}": np.array([part in each for each in sets], dtype=np.float64) for part in parts}


def _row_features(row: "Row") -> dict[str, float]:
    prompt = words_of(row.prompt or "")
    categories = row.taxonomy.categories
    named = [place for place, category in enumerate(categories) if words_of(category.name) <= prompt]
    shared = [len(prompt & _definition_words(category)) for category in categories]
    focus = -1 if row.focus is None else row.taxonomy.index(row.focus)
    size = len(categories)
    return {
        "categories": size,
        "share_defined": sum(not category.name_only for category in categories) / size,
        "share_with_examples": sum(bool(category.examples) for category in categories) / size,
        "definition_characters": sum(len(category.definition) for category in categories) / size,
        "names_in_prompt": len(named),
        "first_named_place": named[0] / size if named else -1,
        "last_named_place": named[-1] / size if named else -1,
        "definitions_in_prompt": sum(map(bool, shared)),
        "definition_words_in_prompt": max(shared),
        # The first of the categories with most words in common.
        "definition_place": int(np.argmax(shared)) / size if max(shared) else -1,
        "focused": focus >= 0,
        "focus_place": focus / size,
        "focus_in_prompt": focus in named if focus >= 0 else -1,
        "focus_words_in_prompt": shared[focus] if focus >= 0 else -1,
    }


def _definition_words(category: Category) -> frozenset[str]:
    if category.name_only:
        return frozenset()
    text = " ".join((category.definition, *category.examples))
    return frozenset(word for word in words_of(text) if len(word) >= SHORTEST_WORD or word.isdigit())


def frequent_words(lines: Sequence[str], incidence: sparse.csr_matrix, most: int = 48) -> Floats:
    """(N, W) counts of the W <= `most` words whose presence splits the rows most evenly, for the trees."""
    counts = incidence @ CountVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform(lines)
    present = np.asarray((counts > 0).mean(axis=0)).ravel()  # (V,) share of rows with each word
    chosen = np.argsort(-present * (1 - present), kind="stable")[:most]
    return np.asarray(counts[:, chosen].todense(), dtype=np.float64)


def pair_incidence(
    prompts: Sequence[str], lines: Sequence[str], incidence: sparse.csr_matrix
) -> sparse.csr_matrix:
    """(N, P) indicators of the P pairs of a prompt word and a policy line, the line up to its colon.

    With them a linear model can learn that "7" in a prompt and "seven" in a policy belong together.
    """
    # The name of a category, of a line "name: definition".
    heads = [line.split(":")[0] for line in lines]
    index: dict[tuple[str, str], int] = {}
    columns: list[int] = []
    ends = [0]  # row pointers of the compressed sparse row format
    for row, prompt in enumerate(prompts):
        present = {
            heads[line] for line in incidence.indices[incidence.indptr[row] : incidence.indptr[row + 1]]
        }
        pairs = ((word, head) for word in sorted(words_of(prompt)) for head in sorted(present))
        columns += [index.setdefault(pair, len(index)) for pair in pairs]
        ends.append(len(columns))
    shape = (len(prompts), max(1, len(index)))
    return sparse.csr_matrix((np.ones(len(columns)), columns, ends), shape=shape)
