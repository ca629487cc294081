"""How much attacks raise the loss, by source (UnsafeBench, section 4.2, Figure 15), from a run of recipes/attack.py."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adversarial.threat import format_epsilon
from judge.errors import CheckpointError
from judge.runs.folder import RunDir

from .confidence import LOSS_EDGES
from .effects import compare, distribution
from .outcomes import divide_sources

NO_SOURCE = "not recorded"
"""Source of the trials of older runs, which did not write it down."""


def margin_loss(margins: ArrayLike) -> NDArray[np.float64]:
    """Cross-entropy in nats of signed margins (N,), logits of the true class: log(1 + exp(-margin))."""
    loss: NDArray[np.float64] = np.logaddexp(0.0, -np.asarray(margins, dtype=np.float64))
    return loss


def loss_under_attack(folder: Path, *, seed: int = 0) -> dict[str, Any]:
    """Losses of the images of an attack run before and after every attack of its suite, at its headline budget.

    All of these images were judged right before. Losses follow from the margins that attacks maximise, which are
    logits of p(unsafe); the few without a finite margin are left out.

    Returns:
        `run`; `epsilon`; `loss_edges`; and `victims`: name -> attack -> `reference` (a source), `left_out` (sources
        beyond `outcomes.MOST_SOURCES` -> images), `sources` (source -> `clean` and `increase`, an
        `effects.distribution` each) and `against_reference` (source -> `clean` and `increase`, an `effects.compare`
        each, positive where that source has more of it).

    Raises:
        CheckpointError: no run of `recipes/attack.py`, or one that did not end.
    """
    run = RunDir.open(folder, kind="attack")
    try:
        epsilon = format_epsilon(run.metrics["suite"]["threat"]["epsilon"])
        margins: defaultdict[tuple[str, str], list[tuple[str, float, float]]] = defaultdict(list)
        for trial in run.read_rows("trials"):
            before, after = trial["gap_clean"], trial["gap"]
            # A margin that is not finite is stored as None.
            if trial["epsilon"] == epsilon and before is not None and after is not None:
                source = trial.get("source", NO_SOURCE)
                margins[trial["victim"], trial["attack"]].append((source, before, after))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} has metrics or trials in another form ({error!r}).") from error
    victims: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for (victim, attack), rows in margins.items():
        victims[victim][attack] = _describe(rows, seed)
    return {
        "run": folder.name,
        "epsilon": epsilon,
        "loss_edges": LOSS_EDGES,
        "victims": dict(victims),
    }


def _describe(rows: list[tuple[str, float, float]], seed: int) -> dict[str, Any]:
    sources, left_out = divide_sources(source for source, _, _ in rows)
    of = np.array([source for source, _, _ in rows])
    clean = margin_loss([before for _, before, _ in rows])
    samples = {"clean": clean, "increase": margin_loss([after for _, _, after in rows]) - clean}
    return {
        "reference": sources[0],
        "left_out": left_out,
        "sources": {
            source: {name: distribution(values[of == source], LOSS_EDGES) for name, values in samples.items()}
            for source in sources
        },
        "against_reference": {
            source: {
                name: compare(values[of == sources[0]], values[of == source], seed=seed)
                for name, values in samples.items()
            }
            for source in sources[1:]
        },
    }
