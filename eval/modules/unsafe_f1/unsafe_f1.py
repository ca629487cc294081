"""F1 of the unsafe class from probabilities; unjudged rows (NaN) count as errors; see `eval.metrics.arrays`."""

import datasets
import evaluate
import numpy as np

from eval.metrics.arrays import average_precision, confusion, roc_auc


class UnsafeF1(evaluate.Metric):  # type: ignore[misc]  # evaluate publishes no types
    """predictions: p(unsafe), NaN or None for unjudged; references: whether the image is unsafe."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="F1, precision and recall of the unsafe class, accuracy, AUC and average precision.",
            citation="",
            inputs_description=(
                "predictions: floats in [0, 1], NaN or None for unjudged; references: booleans; threshold: 0.5"
            ),
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("bool")}
            ),
        )

    def _compute(
        self, *, predictions: list[float], references: list[bool], threshold: float = 0.5
    ) -> dict[str, float]:
        counts = confusion(references, predictions, threshold)
        return {
            "f1": counts.f1,
            "precision": counts.precision,
            "recall": counts.recall,
            "accuracy": counts.accuracy,
            "auc": roc_auc(references, predictions),
            "average_precision": average_precision(references, predictions),
            "unjudged": int(np.isnan(np.array(predictions, dtype=np.float64)).sum()),
        }
