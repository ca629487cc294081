r"""A table for a paper from finished runs of any kind: n, seeds, 95 % intervals, commit.

    python recipes/results_table.py --runs runs/demo runs/student runs/linear_probe
    arbiter table runs/judge-seed* Student=runs/student --metrics f1,auc,heldout_f1 --format latex --out table.tex

Runs of one training under several seeds (the same options but for seed and folder) are one line: mean and sample
standard deviation (n - 1). Lines that were asked other questions (another test set, taxonomy, threshold or draw) stand
apart and are marked with a letter; `--strict` refuses them. What was not measured is a dash. Names of metrics are those
in metrics.json; of robust accuracy at one budget, `robust_accuracy@2/255`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.results.formats import FORMATS
from eval.results.lines import put_together
from eval.results.measured import read_measurements
from judge.errors import ConfigError
from judge.runs.files import write_atomically
from judge.serve.exit_codes import run_to_exit_code
from prompts.printable import printable


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs, put them side by side, and print or write the table."""
    options = read_arguments(arguments)
    measured = [one for run in options.runs for one in read_measurements(run, before=options.before)]
    metrics = [name.strip() for name in options.metrics.split(",") if name.strip()]
    text = FORMATS[options.format](put_together(measured, metrics, strict=options.strict))
    if options.out is None:
        print(text, end="")
        return
    if not options.out.parent.is_dir():
        raise ConfigError(f"There is no folder {options.out.parent}; make it, or write elsewhere.")
    write_atomically(options.out, text)
    print(f"Wrote {printable(options.out)}")


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; a wrong word ends the program with exit code 2."""
    about = (__doc__ or "").split("\n", 1)[0]
    parser = argparse.ArgumentParser(
        prog="arbiter table", description=about, usage="%(prog)s RUN... [options]", allow_abbrev=False
    )
    parser.add_argument(
        "--runs", nargs="+", required=True, metavar="RUN", help="run folders, or NAME=FOLDER to rename"
    )
    parser.add_argument("--format", choices=FORMATS, default="md", help="md (default), latex or csv")
    parser.add_argument(
        "--metrics", default="", help="columns, with commas between; by default the usual ones"
    )
    parser.add_argument("--before", action="store_true", help="also what was measured before training")
    parser.add_argument("--strict", action="store_true", help="refuse runs that were asked other questions")
    parser.add_argument("--out", type=Path, help="a file to write; by default the table is printed")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    raise SystemExit(run_to_exit_code(main, debug=debug, name="error"))
