"""The metrics as modules of the `evaluate` library, loaded from this package, never from a hub.

`evaluate` 0.4.6 works with datasets 5.2 if a module follows these rules, which are tested:

- one `import` per line: it parses imports by line, and takes `import a, b` for a package called "a,";
- absolute imports of this package: it copies the file elsewhere, where relative imports would fail;
- "" for missing text: it rejects None in the first row of a text column.

`evaluate.load("eval/modules/judge_verdicts")` works as well as `load_metric("judge_verdicts")`.
"""

from pathlib import Path
from typing import Any

from eval.metrics.arrays import MetricError

METRICS = ("judge_verdicts", "flip_pairs", "unsafe_f1")


def load_metric(name: str) -> Any:
    """Load the `evaluate` module `name` without network; call its `compute(predictions=, references=)`.

    Predictions and references stay in memory, so that parallel processes share no cache file.

    Raises:
        MetricError: no metric has this name.
    """
    if name not in METRICS:
        raise MetricError(f"no metric {name!r}; there are {', '.join(METRICS)}")
    # Here, as importing `evaluate` takes seconds.
    import evaluate

    return evaluate.load(str(Path(__file__).parent / name), keep_in_memory=True)
