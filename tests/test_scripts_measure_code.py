"""scripts/measure_code.py counts what its documentation says, in any checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "measure_code.py"
FILES = {
    "judge/a.py": '''"""A module."""

import numpy as np
from numpy.typing import NDArray

from .b import scale

Array = NDArray[np.float64]


def double(values: Array) -> Array:
    """Double the values, such as those of run() in [0, 1] (SigLIP)."""
    result = scale(values)  # a comment
    for _ in range(1):
        result = result * 2  # type: ignore
    return result


def shaped(values: Array) -> float:
    """The sum of (N, 3) values."""
    return float(values.sum())
''',
    "judge/b.py": """def scale(x):
    from judge import a

    return a


def twice(numbers):
    found = scale(numbers)
    for _ in range(1):
        found = found * 2
    return found


def other(numbers):
    found = sorted(numbers)
    for _ in range(1):
        found = found * 2
    return found
""",
    "judgement/c.py": "def ignored(values: Tensor):\n    return values\n",
}


def measure(root, *options):
    return subprocess.run(
        [sys.executable, SCRIPT, root, *options], capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path):
    for name, source in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    return tmp_path


def test_a_small_checkout_by_hand(checkout):
    lines = measure(checkout, "--list").stdout.splitlines()
    table = dict(line.rsplit("  ", 1) for line in lines[:9])
    assert {name.strip(): value.strip() for name, value in table.items()} == {
        "files": "2",
        "lines": "39",
        "file length, median and 90th percentile": "20, 21",
        "function length, median and 90th percentile": "5, 5",
        "recipes, and their median length": "0, 0",
        "import cycles": "1",
        "public functions about tensors, and those without shapes in the docstring": "2, 1",
        "duplicate functions": "1",
        "comments, share of code lines": f"{1 / 24:.1%}",
    }
    assert lines[9:] == [
        "no shapes: judge/a.py:11 double",
        "duplicate: judge/a.py:double = judge/b.py:twice",
        "cycle: judge.a <-> judge.b",
    ]


def test_a_folder_without_code_is_refused(tmp_path):
    done = measure(tmp_path)
    assert done.returncode == 2
    assert "give the root of a checkout" in done.stderr
