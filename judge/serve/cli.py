"""The command line: `arbiter judge`, `calibrate`, `attack`, `merge`, `export`, `taxonomy`, `recipes`.

Everything heavy is imported inside the command that needs it, so `arbiter --help` is immediate.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from prompts.printable import printable

from .exit_codes import EXIT_SAFE, run_to_exit_code, say

_JUDGE_TEXT = """\
exit codes:
  0  every image was judged, and none is flagged
  1  at least one image is flagged (even if others could not be judged)
  2  stopped by an error of any kind, whatever was flagged before; --debug says where
  3  no image is flagged, but at least one could not be judged; it is not safe

130 is an interrupt (Ctrl-C).

In folders, whatever has an image's suffix or starts like an image is a line, what cannot be judged too; the rest is
counted. Linked folders are followed once. Of an animation the worst of the frames that differ most decides.

No run makes this post images or keys anywhere: if a cascade was calibrated with a served judge, name that with
--stage-judge. OPENAI_API_KEY goes to servers named on the command line only. A base model or encoder that a run names
by hub id is fetched from the hub as safetensors, which is said; HF_HUB_OFFLINE=1 prevents it.

examples:
  arbiter judge photo.jpg --judge runs/demo --taxonomy digits --categories three,seven
  arbiter judge uploads/ --judge runs/demo --custom "Balloons: toy balloons of any colour" --json
  find uploads -name '*.png' -print0 | arbiter judge - -0 --judge runs/demo
  arbiter judge uploads/ --judge runs/cascade --stage-judge http://localhost:8000/v1#model
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors go to standard error, on one line."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    words = [text for text in given if text != "--debug"]
    if words[:1] == ["attack"]:  # its options are the recipe's own
        debug = len(words) < len(given)
        return run_to_exit_code(lambda: _attack(words[1:], debug), debug=debug)
    options = build_parser().parse_args(given)
    return run_to_exit_code(lambda: int(options.run(options)), debug=options.debug)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands; each sets `run`, a function from the options to an exit code."""
    from .calibrate_command import add_calibrate

    parser = _Parser(prog="arbiter", description="Judge images by your own list of unsafe categories.")
    parser.set_defaults(debug=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_judge(commands)
    add_calibrate(commands)
    commands.add_parser("attack", help="attack classifiers and say what they withstand", add_help=False)
    merge = commands.add_parser("merge", help="merge a run's adapter into its base, for other engines")
    merge.add_argument("judged", metavar="RUN", type=Path, help="a run folder, such as runs/demo")
    merge.add_argument("out", metavar="OUT", type=Path, help="folder to write; must not exist")
    merge.set_defaults(run=_merge)
    export = commands.add_parser("export", help="write a student as ONNX, which is judged with without torch")
    export.add_argument("student", metavar="RUN", type=Path, help="a run folder, such as runs/student")
    export.add_argument("out", metavar="OUT.onnx", type=Path, help="file to write; others go beside it")
    export.add_argument("--int8", action="store_true", help="matrix products in 8 bits: smaller and faster")
    export.set_defaults(run=_export)
    _add_taxonomy(commands)
    _add_recipes(commands)
    return parser


def _add_judge(commands: Any) -> None:
    judge = commands.add_parser(
        "judge",
        help="judge files, folders, or paths from standard input",
        description="Judge images: one line each, in the order given.",
        epilog=_JUDGE_TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    judge.add_argument("paths", nargs="+", metavar="PATH", help="file, folder, or - for paths from stdin")
    judge.add_argument(
        "-0", "--null", action="store_true", help="paths from stdin end with NUL, as of find -print0"
    )
    judge.add_argument(
        "--judge",
        required=True,
        metavar="RUN",
        help="a run folder, student.onnx, a hub id, or http://HOST/v1#MODEL",
    )
    judge.add_argument(
        "--stage-judge",
        metavar="JUDGE",
        help="of a cascade: where its judge is, or none [as it was calibrated]",
    )
    judge.add_argument(
        "--taxonomy", metavar="NAME", help="a shipped taxonomy or a YAML file [the judge's own]"
    )
    judge.add_argument("--categories", metavar="A,B", action="append", help="only these categories")
    judge.add_argument(
        "--custom", metavar='"NAME: DEFINITION"', action="append", default=[], help="one more category"
    )
    judge.add_argument("--prompt", metavar="TEXT", help="the text all these images were generated from")
    judge.add_argument(
        "--threshold",
        metavar="T",
        action="append",
        help="flag from this score on in any category [0.5]; NAME=T is for one category and leaves the others at 0.5; "
        "or a file of `arbiter calibrate`",
    )
    judge.add_argument("--json", action="store_true", help="one JSON object a line")
    judge.add_argument("--multilabel", action="store_true", help="score every category on its own")
    judge.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="images at once [8]")
    judge.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... [the best there is]")
    judge.set_defaults(run=_judge)


def _add_taxonomy(commands: Any) -> None:
    taxonomy = commands.add_parser("taxonomy", help="list, show or check taxonomies")
    actions = taxonomy.add_subparsers(metavar="ACTION", required=True)
    actions.add_parser("list", help="the shipped ones").set_defaults(run=_taxonomy_list)
    show = actions.add_parser("show", help="print one as YAML, ready to be changed")
    show.add_argument("name", metavar="NAME")
    show.set_defaults(run=_taxonomy_show)
    check = actions.add_parser("check", help="check a YAML file")
    check.add_argument("file", metavar="FILE", type=Path)
    check.set_defaults(run=_taxonomy_check)


def _add_recipes(commands: Any) -> None:
    recipes = commands.add_parser("recipes", help="list the recipes, or copy one to change it")
    actions = recipes.add_subparsers(metavar="ACTION", required=True)
    actions.add_parser("list", help="names and what they do").set_defaults(run=_recipes_list)
    copy = actions.add_parser("copy", help="copy a recipe and the configurations; never overwrites")
    copy.add_argument("name", metavar="NAME")
    copy.add_argument("destination", metavar="DEST", nargs="?", type=Path, default=Path("."))
    copy.set_defaults(run=_recipes_copy)


def _judge(options: argparse.Namespace) -> int:
    from .judge_command import judge_paths

    _quiet_libraries()
    return judge_paths(options)


def _attack(arguments: Sequence[str], debug: bool) -> int:
    """`arbiter attack runs/student --preset strong`: what stands before the first option are the victims."""
    from .recipe_files import run_recipe

    count = next((i for i, text in enumerate(arguments) if text.startswith("-")), len(arguments))
    victims = ["--victims", *arguments[:count]] if count else []
    return run_recipe("attack", [*victims, *arguments[count:], *(["--debug"] if debug else [])])


def _quiet_libraries() -> None:
    """Keep the libraries' own bars and notices out of a moderator's output; their errors still come through."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # peft still asks transformers 5.23 by a name that v6 will drop.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _merge(options: argparse.Namespace) -> int:
    _quiet_libraries()
    from judge.vlm.adapter import merge_run

    merge_run(options.judged, options.out)
    print(f"Wrote {printable(options.out)}")
    return EXIT_SAFE


def _export(options: argparse.Namespace) -> int:
    _quiet_libraries()
    from judge.student.export import export_student

    written = export_student(options.student, options.out, int8=options.int8)
    print(
        f"Wrote {printable(', '.join(map(str, written.files)))} ({written.megabytes:.1f} MB); largest difference of a "
        f"probability from PyTorch's on noise: {written.difference:.1e}"
    )
    return EXIT_SAFE


def _taxonomy_list(options: argparse.Namespace) -> int:
    from prompts.taxonomy_file import load_taxonomy, shipped_taxonomies

    for name in shipped_taxonomies():
        taxonomy = load_taxonomy(name)
        print(
            f"{name:<20} version {taxonomy.version:<6} {len(taxonomy):>3} categories  {taxonomy.short_hash}"
        )
    return EXIT_SAFE


def _taxonomy_show(options: argparse.Namespace) -> int:
    from prompts.taxonomy_file import load_taxonomy

    print(load_taxonomy(options.name).to_yaml(), end="")
    return EXIT_SAFE


def _taxonomy_check(options: argparse.Namespace) -> int:
    from prompts.cautions import cautions
    from prompts.errors import TaxonomyError
    from prompts.taxonomy_file import load_taxonomy

    if not options.file.is_file():
        raise TaxonomyError(f"{options.file} is no file; `arbiter taxonomy show NAME` prints shipped ones.")
    taxonomy = load_taxonomy(options.file)
    print(
        f"{printable(options.file)}: {taxonomy.name}, {len(taxonomy)} categories, hash {taxonomy.short_hash}"
    )
    for caution in (line for category in taxonomy for line in cautions(category)):
        say(f"warning: {caution}")
    return EXIT_SAFE


def _recipes_list(options: argparse.Namespace) -> int:
    from .recipe_files import recipe_names

    for name, text in recipe_names().items():
        print(f"{name:<28} {text}")
    return EXIT_SAFE


def _recipes_copy(options: argparse.Namespace) -> int:
    from .recipe_files import copy_recipe

    for path in copy_recipe(options.name, options.destination):
        print(printable(path))
    return EXIT_SAFE


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


class _Parser(argparse.ArgumentParser):
    """A parser, and so each command's, that knows `--debug` and repeats nothing to the terminal that could steer it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})
        self.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="on an error, print where it happened",
        )

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


class _Version(argparse.Action):
    """Looks the version up only when asked: reading package metadata is slow."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"arbiter {version('arbiter-vision')}")
        except PackageNotFoundError:
            print("arbiter, from a checkout that is not installed")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
