"""Copy what a trained student needs, and nothing else, into the package.

    python scripts/ship_student.py runs/student judge/checkpoints/tiny-student           # of make student
    python scripts/ship_student.py runs/signs_student judge/checkpoints/small-student    # of make signs

It judges there as in its run: the two fingerprints are compared. Rows, metrics and pictures stay behind.
"""

import argparse
import shutil
import sys
from pathlib import Path

from judge.errors import CheckpointError
from judge.lessons.record import MEASURED
from judge.runs.folder import MANIFEST, RunDir
from judge.runs.references import fingerprint
from judge.serve.exit_codes import run_to_exit_code
from judge.student.student import CONFIG, WEIGHTS

FILES = (MANIFEST, WEIGHTS, CONFIG, MEASURED, "config.yaml", "taxonomy.yaml")


def main() -> int:
    """Copy the files and compare the copies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a student's run folder")
    parser.add_argument("out", type=Path, help="folder to write")
    options = parser.parse_args()
    run = RunDir.open(options.run, kind="student")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(run.path / name, options.out / name)
        (options.out / name).chmod(0o644)
    if fingerprint(options.out) != fingerprint(run.path):
        raise CheckpointError(
            f"{options.out} does not judge as {run.path} does: another file changes its answers."
        )
    print(f"{options.out}: {sum(path.stat().st_size for path in options.out.iterdir()):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(run_to_exit_code(main, name="ship_student"))
