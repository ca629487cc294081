"""Robust accuracy and related numbers from the trials of a victim, and comparisons of two victims."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adversarial.errors import AttackError
from adversarial.threat import format_epsilon
from eval.metrics.arrays import confusion, ratio
from eval.metrics.comparisons import mcnemar, paired_bootstrap
from eval.metrics.intervals import image_interval

from .suites import Suite
from .trials import Row, Trial, VictimResults


def summarise_trials(
    results: VictimResults, suite: Suite, *, no_gradients: str | None = None
) -> dict[str, Any]:
    """All numbers of one victim, as plain data; budgets are keys such as `2/255`.

    Args:
        results: its rows and trials.
        suite: that it was attacked with.
        no_gradients: why it gives none; None where it does.
    """
    headline = suite.threat.epsilon
    robust, correct = results.robust(headline), results.correct
    counts = confusion(results.truth, [row.clean for row in results.rows])
    return {
        "suite": suite.name,
        "weak": suite.weak,
        "knowledge": suite.threat.knowledge,
        "no_gradients": no_gradients,
        "rows": len(results.rows),
        "images": len(set(results.images)),
        "misjudged": int(sum(not row.correct and row.clean == row.clean for row in results.rows)),
        "unjudged": int(sum(row.clean != row.clean for row in results.rows)),
        "clean_accuracy": counts.accuracy,
        "clean_f1": counts.f1,
        "robust_accuracy": float(robust.mean()),
        "interval": results.interval(robust),
        "robust_accuracy_of_correct": ratio(int(robust.sum()), int(correct.sum())),
        "by_epsilon": {format_epsilon(e): _at_epsilon(results, e) for e in (0.0, *suite.epsilons)},
        "by_attack": by_attack(results, suite),
        "by_steps": by_steps(results, suite),
        "by_direction": _split(results, robust, lambda row: ["unsafe" if row.truth else "safe"]),
        "by_source": _split(results, robust, lambda row: [row.source]),
        "by_category": _split(results, robust, lambda row: row.categories),
        "spent": results.spent,
    }


def _at_epsilon(results: VictimResults, epsilon: float) -> dict[str, Any]:
    """Robust accuracy at a budget: on bytes, on raw floats, and after each re-encoding.

    The attacks do not adapt to the re-encoding, so robustness that it adds is an upper bound.
    """
    robust = results.robust(epsilon)
    names = sorted({name for trial in results.trials for name in trial.stored})
    return {
        "robust_accuracy": float(robust.mean()),
        "interval": results.interval(robust),
        "unjudged": int((robust != results.correct & ~results.broken(epsilon)).sum()),
        "raw": float(results.robust(epsilon, lambda trial: trial.raw).mean()),
        **{name: float(results.robust(epsilon, _after(name)).mean()) for name in names},
    }


def _after(name: str) -> Callable[[Trial], bool]:
    return lambda trial: trial.stored.get(name, False)


def by_attack(results: VictimResults, suite: Suite) -> dict[str, dict[str, float]]:
    """Robust accuracy against each attack alone at the headline budget, where each ran on every image.

    As in `VictimResults.robust`, a row that becomes unjudged is not robust.
    """
    found = {}
    for name in dict.fromkeys(attack.name for attack in suite.attacks):
        # At the headline budget every attack ran on every row, so that they can be compared.
        trials = [t for t in results.trials if t.attack == name and t.epsilon == suite.threat.epsilon]
        broken = {trial.id for trial in trials if trial.success or trial.unjudged}
        raw = {trial.id for trial in trials if trial.raw or trial.unjudged}
        correct = [row for row in results.rows if row.correct]
        found[name] = {
            "robust_accuracy": ratio(sum(row.id not in broken for row in correct), len(results.rows)),
            "raw": ratio(sum(row.id not in raw for row in correct), len(results.rows)),
            "of_correct": ratio(sum(row.id not in broken for row in correct), len(correct)),
            "mean_gap": float(np.mean([trial.gap for trial in trials])) if trials else float("nan"),
        }
    return found


def by_steps(results: VictimResults, suite: Suite) -> dict[str, dict[int, float]]:
    """Robust accuracy on raw floats by number of steps, at the headline budget: attack -> steps -> accuracy."""
    found: dict[str, dict[int, float]] = {}
    for attack in suite.attacks:
        trials = [t for t in results.trials if t.attack == attack.name and t.epsilon == suite.threat.epsilon]
        if not trials or not attack.needs_gradients:
            continue
        # Curves end at the last step at which any best point was found.
        most = max(trial.steps for trial in trials)
        marks = sorted({0, 1, 2, 5, 10, 20, 50, 100, 200, 500, most})
        found[attack.name] = {
            mark: ratio(
                int(results.correct.sum()) - sum((t.raw or t.unjudged) and t.steps <= mark for t in trials),
                len(results.rows),
            )
            for mark in marks
            if mark <= most
        }
    return found


def _split(
    results: VictimResults, robust: NDArray[np.bool_], keys: Callable[[Row], Iterable[str]]
) -> dict[str, dict[str, Any]]:
    """Robust accuracy of subsets of the rows, by key; `robust` is (N,) bool, and a row may have several keys."""
    parts: dict[str, list[int]] = {}
    for place, row in enumerate(results.rows):
        for key in keys(row):
            parts.setdefault(key, []).append(place)
    correct = results.correct
    return {
        key: {
            "rows": len(places),
            "clean_accuracy": float(correct[places].mean()),
            "robust_accuracy": float(robust[places].mean()),
            "interval": image_interval(robust[places], results.images[places]),
        }
        for key, places in sorted(parts.items())
    }


def compare_defended(
    results: Mapping[str, VictimResults],
    clean: Mapping[str, float],
    pairs: Iterable[tuple[str, str]],
    suite: Suite,
) -> dict[str, list[dict[str, Any]]]:
    """Compare each (undefended, defended) pair at each budget of at least one grey level, with the loss in clean F1."""
    return {
        f"{first} and {second}": [
            {
                **compare(results[first], results[second], epsilon),
                "clean_f1_loss": clean[first] - clean[second],
            }
            for epsilon in suite.epsilons
            if epsilon * 255 >= 1 - 1e-6
        ]
        for first, second in pairs
        if first in results and second in results
    }


def summarise_draws(draws: Sequence[VictimResults], epsilon: float) -> dict[str, Any]:
    """Mean and standard deviation over draws of the robust accuracy of rows judged right, as UnsafeBench reports it.

    That shows the variance between samples of rows; use `compare` for two victims.
    """
    shares = [ratio(int(one.robust(epsilon).sum()), int(one.correct.sum())) for one in draws]
    return {
        "draws": shares,
        "mean": float(np.mean(shares)),
        "deviation": float(np.std(shares, ddof=1)) if len(shares) > 1 else None,
    }


def compare(first: VictimResults, second: VictimResults, epsilon: float) -> dict[str, Any]:
    """An undefended and a defended victim on the same rows at a budget: the lead, its interval and McNemar's test.

    Raises:
        AttackError: they were attacked on different rows.
    """
    # Paired by row: the same questions for both victims.
    one, two = first.robust(epsilon), second.robust(epsilon)
    if [row.id for row in first.rows] != [row.id for row in second.rows]:
        raise AttackError(
            f"{first.name} and {second.name} were attacked on different rows; compare them on the same rows."
        )
    lead, test = paired_bootstrap(two, one, groups=first.images), mcnemar(two, one)
    return {
        "epsilon": format_epsilon(epsilon),
        "rows": len(one),
        "undefended": float(one.mean()),
        "defended": float(two.mean()),
        "lead": lead.mean,
        "interval": (lead.low, lead.high),
        "only_first": test.only_second,
        "only_second": test.only_first,
        "p_value": test.p_value,
    }
