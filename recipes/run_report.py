r"""The report of a finished run, written anew from what its folder holds: nothing is trained or judged again.

    python recipes/run_report.py --runs runs/demo runs/student runs/cascade
    arbiter report runs/demo --dataset folder:my_images

Judges, students, heads with fixed categories and cascades. Pictures come from the data set that the run was made from,
read again under the same taxonomy; where it is not at hand the page has none, and says so.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.reports.run_report import write_run_report
from judge.data.examples import load_examples
from judge.runs.folder import RunDir
from judge.serve.exit_codes import run_to_exit_code
from prompts import Example, load_taxonomy
from prompts.errors import ArbiterError
from prompts.printable import error_line, printable


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report of each run."""
    options = read_arguments(arguments)
    for run in [RunDir.open(path) for path in options.runs]:
        print(f"Wrote {printable(write_run_report(run, pictures_of(run, options.dataset)))}")


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; a wrong word ends the program with exit code 2."""
    about = (__doc__ or "").split("\n", 1)[0]
    parser = argparse.ArgumentParser(
        prog="arbiter report", description=about, usage="%(prog)s RUN... [options]", allow_abbrev=False
    )
    parser.add_argument("--runs", nargs="+", type=Path, required=True, metavar="RUN", help="run folders")
    parser.add_argument("--dataset", help="where the pictures are, if they were moved; none for no pictures")
    return parser.parse_args(arguments)


def pictures_of(run: RunDir, dataset: str | None) -> Sequence[Example]:
    """The test images that the run's questions were about; none where they cannot be read."""
    config = run.config
    source = dataset or str(config.get("dataset", "none"))
    if source == "none":
        return ()
    try:
        taxonomy = load_taxonomy(config.get("taxonomy", run.path / "taxonomy.yaml"))
        return load_examples(
            source, split="test", taxonomy=taxonomy, limit=config.get("limit"), max_failures=1.0
        ).examples
    except (ArbiterError, OSError) as error:
        print(f"No pictures: {error_line(error)}", file=sys.stderr)
        return ()


if __name__ == "__main__":
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    raise SystemExit(run_to_exit_code(main, debug=debug, name="error"))
