"""`arbiter decisions`: what moderators decided at the page, as a list, a table, or rows to train on."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from judge.errors import ConfigError, first_line
from prompts.printable import printable

from .exit_codes import EXIT_SAFE
from .options import DatabaseOption, DatabasePasswordOption, JsonOption
from .past_decisions import open_records
from .terminal import STATUS_STYLES, Terminal

if TYPE_CHECKING:
    from judge.records.entries import Decision

decisions_app = typer.Typer(
    rich_markup_mode=None, help="List what moderators decided, or export it as training rows."
)
EXPORT_EPILOG = """\
OUT is a new folder: images, labels.csv and taxonomy.yaml, which training and calibration read. Of several decisions
about one image the latest counts; skipped images are left out. Decisions under several taxonomies make a table each,
and labels-HASH.csv is then named itself.

\b
Examples:
  arbiter decisions export rows
  accelerate launch recipes/lora_llava.py --dataset folder:rows \\
      --taxonomy rows/taxonomy.yaml
  arbiter calibrate --judge runs/student --data folder:rows --split all \\
      --taxonomy rows/taxonomy.yaml --out thresholds.yaml
  arbiter decisions export log.csv --csv
"""
StateOption = Annotated[
    Path, typer.Option(metavar="DIR", help="The --state of `arbiter serve`: its images and its database.")
]
DEFAULT_STATE = Path(".arbiter")


@decisions_app.command("list")
def list_decisions(
    state: StateOption = DEFAULT_STATE,
    database: DatabaseOption = None,
    database_password_file: DatabasePasswordOption = None,
    as_json: JsonOption = False,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the latest N.", show_default="all")
    ] = None,
) -> int:
    """List the decisions, oldest first; in JSON one a line, with the verdict that it is about."""
    records = open_records(state, database, database_password_file)
    try:
        found = records.decisions(limit=limit, newest_first=True)[::-1]
    finally:
        records.close()
    if as_json:
        for decision in found:
            print(json.dumps(decision.to_dict(), allow_nan=False))
        return EXIT_SAFE
    Terminal().table(
        ("id", "time", "moderator", "image", "action", "decided", "verdict", "taxonomy"),
        [_line(decision) for decision in found],
        styles=[STATUS_STYLES.get(str(decision.ruling.status), "") for decision in found],
    )
    return EXIT_SAFE


def _line(decision: "Decision") -> tuple[object, ...]:
    row, ruling = decision.verdict, decision.ruling
    return (
        decision.id,
        decision.time,
        decision.moderator,
        decision.item.name,
        ruling.action,
        ", ".join(ruling.categories) or ruling.status or "",
        ", ".join(name for name, flag in row["flags"].items() if flag) or row["status"],
        f"{row['taxonomy']['name']} {row['taxonomy']['hash'][:16]}",
    )


@decisions_app.command("export", epilog=EXPORT_EPILOG)
def export_decisions(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What to write; must not exist.")],
    state: StateOption = DEFAULT_STATE,
    database: DatabaseOption = None,
    database_password_file: DatabasePasswordOption = None,
    csv: Annotated[
        bool, typer.Option("--csv", help="Write the whole log as a table to the file OUT, or - to print it.")
    ] = False,
) -> int:
    """Write the decided images with their labels into a folder, for training and calibration."""
    records = open_records(state, database, database_password_file)
    try:
        if csv:
            from judge.records.decision_table import csv_lines

            _write_table(out, csv_lines(records.each_decision()))
            return EXIT_SAFE
        from judge.records.export import export_folder

        exported = export_folder(records, out)
    finally:
        records.close()
    terminal = Terminal()
    terminal.table(
        ("table", "train", "validation", "test"),
        [(str(out / name), *counts.values()) for name, counts in exported.tables.items()],
    )
    if exported.left_out:
        terminal.notice(f"decisions left out: {len(exported.left_out)}; {out / 'export.json'} says why")
    return EXIT_SAFE


def _write_table(out: Path, lines: Iterable[str]) -> None:
    if str(out) == "-":
        for line in lines:
            print(line, end="")
        return
    try:
        with out.open("x", encoding="utf-8", newline="") as file:
            file.writelines(lines)
    except OSError as error:
        raise ConfigError(f"{str(out)!r} cannot be written: {first_line(error)}.") from error
    print(f"Wrote {printable(out)}")
