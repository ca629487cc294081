"""All metrics of `eval.metrics.judged.summarise`, from verdicts and labels."""

from typing import Any

import datasets
import evaluate

from eval.metrics.judged import JudgedRow, summarise


class JudgeVerdicts(evaluate.Metric):  # type: ignore[misc]  # evaluate publishes no types
    """predictions: score and category; references: the labels of `JudgedRow`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="All metrics of an image-safety judge; unjudged rows count as errors.",
            citation="",
            inputs_description=(
                "predictions: dicts of unsafe (float in [0, 1], or NaN or None for unjudged) "
                "and category (text, '' for none); "
                "references: dicts of unsafe (bool), violated and policy (lists of names), source, pair, "
                "direction and arm (texts, '' for none); threshold: 0.5"
            ),
            features=datasets.Features(
                {
                    "predictions": {"unsafe": datasets.Value("float64"), "category": text},
                    "references": {
                        "unsafe": datasets.Value("bool"),
                        "violated": datasets.List(text),
                        "policy": datasets.List(text),
                        "source": text,
                        "pair": text,
                        "direction": text,
                        "arm": text,
                    },
                }
            ),
        )

    def _compute(
        self,
        *,
        predictions: list[dict[str, Any]],
        references: list[dict[str, Any]],
        threshold: float = 0.5,
    ) -> dict[str, Any]:
        rows = [
            JudgedRow(
                id=str(number),
                truth=truth["unsafe"],
                unsafe=float("nan") if verdict["unsafe"] is None else verdict["unsafe"],
                # `evaluate` has no None in text columns: "" stands for it.
                category=verdict["category"] or None,
                violated=frozenset(truth["violated"]),
                policy=tuple(truth["policy"]),
                source=truth["source"],
                pair=truth["pair"] or None,
                direction=truth["direction"] or None,
                arm=truth["arm"] or None,
            )
            for number, (verdict, truth) in enumerate(zip(predictions, references, strict=True))
        ]
        return summarise(rows, threshold)
