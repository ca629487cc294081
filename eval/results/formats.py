"""A table of results as Markdown, LaTeX or CSV. What was not measured is a dash (an empty cell of CSV), never 0."""

import csv
import io
import re
from collections.abc import Callable

from eval.reports.table import Table
from judge.records.decision_table import begins_formula
from prompts.printable import printable

from .lines import Cell, Line, Results

DASH = "–"
LABELS = {
    "f1": "F1",
    "auc": "AUC",
    "heldout_f1": "F1, held-out categories",
    "lying_prompt_f1": "F1, prompt of another image",
    "f1_everything": "F1, flips and held-out",
    "calibration_error": "calibration error",
    "unjudged_share": "unjudged",
    "safe_to_unsafe": "flips, safe to unsafe",
    "unsafe_to_safe": "flips, unsafe to safe",
    "unseen_families_f1_drop": "loss of F1 in unseen wordings",
    "pes": "policy exception score",
}
"""Names of metrics that are no words as they are."""
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    "–": r"\textendash{}",
    "±": r"$\pm$",
}
"""What means something to LaTeX (`[` and `*` do behind the end of a row), and how it is written as itself."""
_LIGATURE = re.compile(r"([-,])(?=\1)")


def label(metric: str) -> str:
    """A metric in words: `robust accuracy at 2/255`."""
    name, _, budget = metric.partition("@")
    return LABELS.get(name, name.replace("_", " ")) + (f" at {budget}" if budget else "")


def to_markdown(results: Results, title: str = "Results") -> str:
    """The table in GitHub's Markdown, with its notes."""
    head, *body = _text_rows(results, _words)
    lines = [(name, cells) for name, *cells in body]
    return Table(title, head[1:], lines, " ".join(results.notes)).to_markdown()


def to_latex(results: Results, title: str = "Results") -> str:
    """A `table` with `booktabs`; text of runs is escaped, lines of other questions stand under a rule of their own."""
    head, *body = _text_rows(results, _words)
    rows = [" & ".join(map(escape_latex, row)) + r" \\" for row in body]
    parts: list[str] = []
    for place, (line, row) in enumerate(zip(results.lines, rows, strict=True)):
        if place and line.asked != results.lines[place - 1].asked:
            parts.append(r"\midrule")
        parts.append(row)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}, and \\usepackage{textcomp} before 2020",
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{escape_latex(title)}}}",
            f"\\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
            r"\toprule",
            " & ".join(map(escape_latex, head)) + r" \\",
            r"\midrule",
            *parts,
            r"\bottomrule",
            r"\end{tabular}",
            *(f"\\par{{\\footnotesize {escape_latex(note)}}}" for note in results.notes),
            r"\end{table}",
            "",
        ]
    )


def to_csv(results: Results) -> str:
    """A line for each line, all digits; of each metric the value, both ends of its interval and the deviation."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = ("", "_low", "_high", "_deviation", "_seeds")
    head = ["name", "kind", "runs", "seeds", "rows", "asked", "questions", "commits"]
    writer.writerow([*head, *(metric + part for metric in results.metrics for part in parts)])
    for line in results.lines:
        row = [line.name, line.kind, " ".join(map(str, line.runs)), " ".join(map(_seed, line.seeds))]
        row += ["" if line.rows is None else str(line.rows), line.asked, results.asked[line.asked]]
        row = [_text_cell(text) for text in (*row, " ".join(line.commits))]
        for metric in results.metrics:
            row += _numbers(line.cells.get(metric))
        writer.writerow(row)
    return out.getvalue()


FORMATS: dict[str, Callable[[Results], str]] = {"md": to_markdown, "latex": to_latex, "csv": to_csv}


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it; control characters become visible escapes first."""
    return _LIGATURE.sub(r"\1{}", "".join(_LATEX.get(sign, sign) for sign in printable(text)))


def _text_rows(results: Results, show: Callable[[Cell, int], str]) -> list[list[str]]:
    """The head, and a row for each line; the column of letters only where there are several."""
    several = len(results.asked) > 1
    head = ["", "kind", "n", "seeds", *map(label, results.metrics), "commit"]
    rows = [[*head, "asked"] if several else head]
    for line in results.lines:
        row = [line.name, line.kind, DASH if line.rows is None else f"{line.rows:,}", _seeds(line)]
        for metric in results.metrics:
            cell = line.cells.get(metric)
            row.append(DASH if cell is None else show(cell, len(line.runs)))
        row.append(", ".join(line.commits) or DASH)
        rows.append([*row, f"({line.asked})"] if several else row)
    return rows


def _words(cell: Cell, runs: int) -> str:
    """`0.980 (0.971 – 0.986)`, or `0.981 ± 0.004`; of some of the runs only, with how many."""
    text = f"{cell.value:.3f}"
    if cell.low is not None and cell.high is not None:
        text += f" ({cell.low:.3f} {DASH} {cell.high:.3f})"
    if cell.deviation is not None:
        text += f" ± {cell.deviation:.3f}"
    return text if runs == 1 or cell.seeds == runs else f"{text} ({cell.seeds} of {runs} seeds)"


def _seeds(line: Line) -> str:
    return ", ".join(map(_seed, line.seeds))


def _seed(seed: int | None) -> str:
    return DASH if seed is None else str(seed)


def _text_cell(text: str) -> str:
    """A text for a spreadsheet, which would compute what begins with a sign of a formula."""
    shown = printable(text)
    return f"'{shown}" if begins_formula(shown) else shown


def _numbers(cell: Cell | None) -> list[str]:
    if cell is None:
        return [""] * 5
    numbers = [cell.value, cell.low, cell.high, cell.deviation]
    return ["" if number is None else repr(float(number)) for number in numbers] + [str(cell.seeds)]
