"""`arbiter annotate`: from a taxonomy and collected images to a data set that people have labelled."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from judge.errors import ConfigError
from prompts.printable import printable

from .completion import complete_taxonomy
from .exit_codes import print_stderr
from .options import JsonOption
from .terminal import Terminal

if TYPE_CHECKING:
    from judge.annotation.images import Categories, Folder, Picture
    from judge.annotation.terms import Term
    from prompts.taxonomy import Taxonomy

annotate_app = typer.Typer(
    rich_markup_mode=None,
    help="Collect, share out and merge what people say of images: search terms, copies, tasks, votes.",
)
ANNOTATE_EPILOG = """\
Two annotators label every image safe, unsafe or na; a third decides where they disagree; a second round names the
categories of unsafe images. Answers are CSV (image, annotator, label, categories) or exports of Label Studio.

\b
Examples:
  arbiter annotate terms mine.yaml --out terms.csv
  arbiter annotate dedupe pictures --out unique
  arbiter annotate tasks unique/kept.csv --images pictures \\
      --taxonomy mine.yaml --annotators anna,ben --out round1.csv
  arbiter annotate third round1-*.csv --images pictures \\
      --taxonomy mine.yaml --annotators cem --out third.csv
  arbiter annotate merge round1-*.csv third-cem.csv --images pictures \\
      --taxonomy mine.yaml --out dataset
  arbiter annotate tasks dataset/annotation/uncategorised.csv --round 2 \\
      --images pictures --taxonomy mine.yaml --annotators anna,ben --out round2.csv
  arbiter annotate push verdicts.jsonl --url http://localhost:8080 --project 7
"""
SourceArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER|TABLE", help="Images, or a CSV with a column `image`.")
]
AnswersArgument = Annotated[
    list[Path],
    typer.Argument(metavar="ANSWERS...", help="CSV, or Label Studio's JSON; the first round first."),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="What the images' names are relative to.",
        show_default="the folder, or the one of the table",
    ),
]
AnsweredImagesOption = Annotated[
    Path, typer.Option("--images", metavar="FOLDER", help="What the images' names are relative to.")
]
PolicyOption = Annotated[
    str,
    typer.Option(
        "--taxonomy",
        metavar="NAME",
        help="A shipped taxonomy or a YAML file.",
        autocompletion=complete_taxonomy,
    ),
]
AnnotatorsOption = Annotated[
    str, typer.Option(metavar="A,B", help="Names; of more than two, each pair in turn.")
]
FromOption = Annotated[
    str, typer.Option("--source", metavar="NAME", help="Where images without one are from.")
]
CollectedOption = Annotated[
    str, typer.Option(metavar="CATEGORY", help="What images that do not say so were collected for.")
]
TasksOutOption = Annotated[
    Path, typer.Option(metavar="FILE", help=".csv: a file for each annotator; .json: for Label Studio.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="PREFIX",
        help="For Label Studio: what stands before an image's name in its address.",
        show_default="/data/local-files/?d=",
    ),
]


@annotate_app.command("terms", epilog=ANNOTATE_EPILOG)
def list_terms(
    taxonomy: Annotated[
        str,
        typer.Argument(
            metavar="TAXONOMY", help="One that ships, or a YAML file.", autocompletion=complete_taxonomy
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help=".csv or .json.", show_default="print CSV")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL#MODEL", help="Ask a chat server (OpenAI's protocol) for further examples too."
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option(metavar="N", help="With --server: so many examples of each category.")
    ] = 10,
    as_json: JsonOption = False,
) -> None:
    """List candidate search terms for each category: its names, its definition in parts, its examples."""
    from judge.annotation.cells import csv_text, text_cell
    from judge.annotation.tasks import write_new
    from judge.annotation.terms import COLUMNS, candidate_terms, without_repeats
    from prompts.taxonomy_file import load_taxonomy

    if out is not None and out.suffix not in (".csv", ".json"):
        raise ConfigError(f"--out {out}: give a name that ends in .csv or .json.")
    policy = load_taxonomy(taxonomy)
    found = candidate_terms(policy)
    if server is not None:
        found = without_repeats([*found, *_suggestions(server, policy, examples)])
    found.sort(key=lambda term: policy.index(term.category))
    if as_json or (out is not None and out.suffix == ".json"):
        rows = [{"category": one.category, "term": one.term, "where": one.where} for one in found]
        text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    else:
        text = csv_text(COLUMNS, [tuple(map(text_cell, (t.category, t.term, t.where))) for t in found])
    if out is None:
        print(text, end="")
    else:
        write_new({out: text})
        print(f"Wrote {printable(out)}: {len(found)} terms of {len(policy)} categories")


@annotate_app.command("dedupe", epilog=ANNOTATE_EPILOG)
def drop_copies(
    source: SourceArgument,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For kept.csv, copies.csv, unreadable.csv.")],
    images: ImagesOption = None,
    source_name: FromOption = "",
    collected_for: CollectedOption = "",
) -> None:
    """List the images to annotate: one of each group of near copies. No file is deleted or moved."""
    from judge.annotation.cells import csv_text, name_cell, text_cell
    from judge.annotation.duplicates import find_copies
    from judge.annotation.images import COLUMNS
    from judge.annotation.tasks import write_new

    folder, pictures = _pictures(source, images, None, source_name, collected_for)
    with Terminal().progress() as bar:
        bar.describe("comparing", len(pictures))
        found = find_copies(pictures, folder, progress=bar.count)

    def cells(picture: "Picture") -> tuple[str, ...]:
        return name_cell(picture.name), picture.source, text_cell(picture.collected_for)

    copies = [(*cells(one.picture), name_cell(one.of), "yes" if one.exact else "no") for one in found.copies]
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder for the lists.")
    out.mkdir(parents=True, exist_ok=True)
    write_new(
        {
            out / "kept.csv": csv_text(COLUMNS, [cells(picture) for picture in found.kept]),
            out / "copies.csv": csv_text((*COLUMNS, "copy_of", "exact"), copies),
            out / "unreadable.csv": csv_text(
                (*COLUMNS, "reason"), [(*cells(picture), reason) for picture, reason in found.unreadable]
            ),
        }
    )
    print(
        f"{len(pictures)} images: {len(found.kept)} kept, {len(found.copies)} copies, "
        f"{len(found.unreadable)} unreadable; lists in {printable(out)}"
    )


@annotate_app.command("tasks", epilog=ANNOTATE_EPILOG)
def make_tasks(
    source: SourceArgument,
    taxonomy: PolicyOption,
    annotators: AnnotatorsOption,
    out: TasksOutOption = Path("tasks.csv"),
    images: ImagesOption = None,
    source_name: FromOption = "",
    collected_for: CollectedOption = "",
    round_number: Annotated[
        int,
        typer.Option("--round", metavar="N", min=1, max=2, help="2: ask everybody for the categories only."),
    ] = 1,
    address: AddressOption = None,
) -> None:
    """Share images out among annotators: two for each."""
    from judge.annotation.images import Categories
    from judge.annotation.label_studio import LOCAL_FILES
    from judge.annotation.tasks import assign_all, assign_pairs, read_annotators, write_tasks
    from prompts.taxonomy_file import load_taxonomy

    policy = load_taxonomy(taxonomy)
    names = read_annotators(annotators, least=3 - round_number)
    _, pictures = _pictures(source, images, Categories(policy), source_name, collected_for)
    tasks = (assign_pairs if round_number == 1 else assign_all)(pictures, names)
    prefix = LOCAL_FILES if address is None else address
    _say_written(write_tasks(tasks, out, policy, only_categories=round_number == 2, prefix=prefix))


@annotate_app.command("third", epilog=ANNOTATE_EPILOG)
def make_third_tasks(
    answers: AnswersArgument,
    taxonomy: PolicyOption,
    images: AnsweredImagesOption,
    annotators: Annotated[
        str, typer.Option(metavar="A,B", help="Who may decide; nobody is asked about an image twice.")
    ],
    out: TasksOutOption = Path("third.csv"),
    address: AddressOption = None,
) -> None:
    """Share out the images on which the annotators disagree: one further annotator for each."""
    from judge.annotation.answers import read_answers
    from judge.annotation.images import Folder
    from judge.annotation.label_studio import LOCAL_FILES
    from judge.annotation.tasks import assign_third, read_annotators, write_tasks
    from judge.annotation.votes import FEWEST_VOTES, collect_votes, disagreements
    from prompts.taxonomy_file import load_taxonomy

    policy = load_taxonomy(taxonomy)
    names = read_annotators(annotators, least=1)
    ballots, _ = collect_votes(read_answers(answers, policy, Folder(images)))
    open_ones = disagreements(ballots)
    tasks, left = assign_third(open_ones, names)
    _warn([one.picture.name for one in ballots if len(one.labels) < FEWEST_VOTES], "without two labels yet")
    _warn([one.picture.name for one in left], f"labelled by all of {annotators} already, without a majority")
    print(f"{len(ballots)} images, {len(open_ones)} of them without a majority")
    if tasks:
        _say_written(write_tasks(tasks, out, policy, prefix=LOCAL_FILES if address is None else address))


@annotate_app.command("merge", epilog=ANNOTATE_EPILOG)
def merge_votes(
    answers: AnswersArgument,
    taxonomy: PolicyOption,
    images: AnsweredImagesOption,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="A new folder; or that of the images, which copies none.")
    ],
    no_categories: Annotated[
        bool,
        typer.Option("--no-categories", help="Take unsafe images without a majority for a category too."),
    ] = False,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Write annotator-1, annotator-2, ... instead of names.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Decide by majority and write a data set (`folder:OUT`); what has no majority is listed beside it."""
    from judge.annotation.answers import read_answers
    from judge.annotation.dataset import merge_answers
    from judge.annotation.images import Folder
    from judge.annotation.statistics import by_category, by_source
    from prompts.taxonomy_file import load_taxonomy

    policy, folder = load_taxonomy(taxonomy), Folder(images)
    found = merge_answers(
        read_answers(answers, policy, folder),
        policy,
        folder,
        out,
        with_categories=not no_categories,
        anonymous=anonymous,
    )
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    terminal = Terminal()
    for table in (by_source(found), by_category(found)):
        terminal.table(table[0], table[1:])
        terminal.gap()
    line = found["all"]
    left = {key: line[key] for key in ("not_applicable", "uncategorised", "unresolved") if line[key]}
    told = "; left out: " + ", ".join(f"{count} {key}" for key, count in left.items()) if left else ""
    print(f"Wrote {printable(out)}: {line['safe'] + line['unsafe']} labelled images{told}")


@annotate_app.command("push", epilog=ANNOTATE_EPILOG)
def push_predictions(
    rows: Annotated[
        list[Path],
        typer.Argument(
            metavar="ROWS...",
            help="JSON lines of `arbiter judge --json`, output folders of `arbiter label`.",
        ),
    ],
    url: Annotated[str, typer.Option(metavar="URL", help="Label Studio, such as http://localhost:8080.")],
    project: Annotated[int, typer.Option(metavar="N", min=1, help="Its number, as in the address.")],
    taxonomy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only rows of this taxonomy.", show_default="all rows"),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, max=500, help="Predictions of a request.")] = 50,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Wait for an answer so long.")] = 30.0,
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", help="Try again so long when Label Studio fails.")
    ] = 600.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look up what would be sent.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Store verdicts as predictions of an existing Label Studio project; run it again after any failure.

    Your access token is read from the environment variable LABEL_STUDIO_API_KEY.
    """
    from dataclasses import asdict

    from judge.annotation.label_studio_api import LabelStudio
    from judge.annotation.label_studio_push import push
    from judge.annotation.verdict_suggestions import read_finished

    finished = read_finished(rows, taxonomy)
    with (
        LabelStudio(url, timeout=timeout, patience=patience) as studio,
        Terminal().progress() as bar,
    ):
        bar.describe("pushing", None)
        done = push(studio, project, finished, batch=batch, dry_run=dry_run, count=bar.count)
    _warn(list(done.without_task), f"without a task in project {project}")
    _warn(list(done.ambiguous), "left out, as their names fit several tasks")
    if as_json:
        print(json.dumps(asdict(done)))
        return
    left = {
        "there already": done.there,
        "unjudged images left out": done.unjudged,
        "unsafe images that no choice fits": done.untold,
        "copies taken back": done.taken_back,
    }
    told = "".join(f"; {number} {what}" for what, number in left.items() if number)
    print(f"{'Would push' if dry_run else 'Pushed'} {done.sent} predictions to project {project}{told}")
    for version in done.versions:
        print(f"model version: {printable(version)}")


def _pictures(
    source: Path, images: Path | None, categories: "Categories | None", source_name: str, collected_for: str
) -> "tuple[Folder, list[Picture]]":
    """The images that a command is about, and their folder."""
    import os

    from judge.annotation.cells import check_word
    from judge.annotation.images import Folder, list_files, list_table
    from judge.runs.files import nearest_path

    from .image_files import find_images

    check_word(source_name, "a source", "--source")
    wanted = (
        categories.name(collected_for, "--collected-for") if categories and collected_for else collected_for
    )
    if source.suffix == ".csv":
        folder = Folder(images or source.parent)
        return folder, list_table(source, folder, categories, source=source_name, collected_for=wanted)
    if not source.is_dir():
        raise ConfigError(f"{source} is neither a folder nor a .csv{nearest_path(str(source))}.")
    folder = Folder(images or source)
    found = list(find_images([str(source)]))
    for one in found:
        if one.reason is not None:
            raise ConfigError(f"{one.path}: {one.reason}.")
    names = [os.path.relpath(one.path, folder.path) for one in found]
    return folder, list_files(names, folder, source=source_name, collected_for=wanted)


def _suggestions(server: str, policy: "Taxonomy", count: int) -> "list[Term]":
    """What a model names; categories that it names nothing for are told."""
    from judge.annotation.suggestions import suggest_terms
    from judge.vlm.remote import parse_remote

    found: list[Term] = []
    with parse_remote(server) as remote:
        for category, (terms, remark) in zip(policy, suggest_terms(remote, policy, count), strict=True):
            found += terms
            if remark:
                print_stderr(f"arbiter: {printable(category.name)}: {printable(remark)}")
    if not found:
        raise ConfigError(
            f"{server} named no example of any category; leave --server out for the terms without."
        )
    return found


def _say_written(files: dict[Path, int]) -> None:
    for path, count in files.items():
        print(f"Wrote {printable(path)}: {count} images")


def _warn(names: list[str], what: str) -> None:
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        print_stderr(f"arbiter: {len(names)} images {what}: {printable(shown)}")
