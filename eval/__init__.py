"""Evaluation: metrics, the text-only shortcut check and reports. Names are imported on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .metrics.arrays import MetricError
    from .metrics.judged import JudgedRow, summarise
    from .modules import METRICS, load_metric
    from .reports.judge_page import format_table, write_report
    from .shortcut.check import ShortcutResult, check_rows, shortcut_auc

_HOMES = {
    "JudgedRow": "metrics.judged",
    "summarise": "metrics.judged",
    "METRICS": "modules",
    "load_metric": "modules",
    "format_table": "reports.judge_page",
    "write_report": "reports.judge_page",
    "MetricError": "metrics.arrays",
    "ShortcutResult": "shortcut.check",
    "check_rows": "shortcut.check",
    "shortcut_auc": "shortcut.check",
}

__all__ = [
    "METRICS",
    "JudgedRow",
    "MetricError",
    "ShortcutResult",
    "check_rows",
    "format_table",
    "load_metric",
    "shortcut_auc",
    "summarise",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'eval' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
