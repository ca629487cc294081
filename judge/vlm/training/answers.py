"""The answer that a training row teaches."""

from collections.abc import Sequence

from prompts.errors import ExampleError
from prompts.flip.rows import Row
from prompts.template import Answer, Chat, render


def question_and_answers(row: Row, template: str) -> tuple[Chat, tuple[Answer, ...]]:
    """The chat of a row, and those of its closed answers that are right.

    One, or, of an unsafe image of which nobody recorded the category, every unsafe one: then what they begin with
    alike is taught (`shared_start`), which says unsafe and leaves open how.

    Raises:
        ExampleError: none is, or several are where the category is known.
    """
    chat = render(row.taxonomy, row.prompt, template=template, focus=row.focus)
    wanted = None if row.category is None else row.taxonomy.index(row.category)
    answers = tuple(a for a in chat.answers if a.unsafe == row.unsafe and a.category in (wanted, None))
    if row.unsafe and wanted is None and not answers:
        answers = tuple(answer for answer in chat.answers if answer.unsafe)
    elif len(answers) != 1:
        raise ExampleError(f"{row.example.id}: no single answer for unsafe={row.unsafe}, {row.category!r}.")
    return chat, answers


def shared_start(answers: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens that all right answers of a row begin with; all of them where there is one.

    Args:
        answers: tokens of each, of which none is the beginning of another.
    """
    first, last = min(answers), max(answers)
    if first == last:
        return first
    return first[
        : next(place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1])
    ]


def check_length(row: Row, tokens: int, max_length: int) -> None:
    """Refuse a row that is too long: truncating would cut the answer, which comes last.

    Raises:
        ExampleError: says how long it is, and what to change.
    """
    if tokens > max_length:
        raise ExampleError(
            f"{row.example.id}: the row takes {tokens} tokens and max_length is {max_length}. "
            "Raise max_length, lower max_categories, or shorten the definitions; truncating would cut the answer."
        )
