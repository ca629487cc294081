r"""Copy what a trained student or a cascade needs, and nothing else, into the package.

    python scripts/ship_run.py runs/student judge/checkpoints/tiny-student           # of make student
    python scripts/ship_run.py runs/signs_student judge/checkpoints/small-student    # of make signs
    python recipes/cascade.py --config recipes/configs/signs/cascade.yaml --student judge/checkpoints/small-student \
        --output_dir runs/small_cascade
    python scripts/ship_run.py runs/small_cascade judge/checkpoints/small-cascade

It judges there as in its run: loaded once from the new place. Rows, metrics and pictures stay behind.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from judge.cascade.settings import SETTINGS
from judge.classifiers import load_classifier
from judge.lessons.record import MEASURED
from judge.runs.folder import MANIFEST, RunDir
from judge.runs.references import stored_path
from judge.serve.exit_codes import run_to_exit_code
from judge.student.student import CONFIG, WEIGHTS

FILES = {
    "student": (MANIFEST, WEIGHTS, CONFIG, MEASURED, "config.yaml", "taxonomy.yaml"),
    "cascade": (MANIFEST, SETTINGS, "config.yaml", "taxonomy.yaml"),
}
"""Kind of run -> what it is loaded from."""


def main() -> int:
    """Copy the files, and load the copy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("out", type=Path, help="folder to write")
    options = parser.parse_args()
    run = RunDir.open(options.run)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in FILES[run.kind]:
        shutil.copyfile(run.path / name, options.out / name)
        (options.out / name).chmod(0o644)
    if run.kind == "cascade":
        about = run.manifest["student"]
        student = stored_path(about["path"], run.path)
        RunDir(options.out).update_manifest(
            student=about | {"path": Path(os.path.relpath(student, options.out)).as_posix()}
        )
    load_classifier(options.out)
    print(f"{options.out}: {sum(path.stat().st_size for path in options.out.iterdir()):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(run_to_exit_code(main, name="ship_run"))
