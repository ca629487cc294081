"""A training on labels that say safe or unsafe and nothing more, under one category and under several."""

import csv
import json

import pytest
from fixtures_shapes import TRAINER_OPTIONS

from judge import load_classifier, load_examples, open_image
from prompts import load_taxonomy


@pytest.fixture(scope="module")
def bare(shapes, tmp_path_factory):
    """The pictures of `shapes` with a table of path and label alone, without splits."""
    table = tmp_path_factory.mktemp("bare labels") / "labels.csv"
    with (shapes.folder / "table.csv").open(newline="") as file:
        lines = [f"{row['path']};{row['label']}" for row in csv.DictReader(file)]
    table.write_text("\n".join(["File Name;Class", *lines[::2]]))
    return f"folder:{table}::{shapes.folder}"


@pytest.mark.parametrize("several", [True, False])
def test_whole_labels_train_a_judge(several, bare, shapes, run_recipe, base_folder, tmp_path):
    taxonomy = load_taxonomy(shapes.taxonomy)
    if not several:
        taxonomy = taxonomy.select(["Ring"]).rename({"Ring": "Any shape"})
    (tmp_path / "taxonomy.yaml").write_text(taxonomy.to_yaml())
    printed = run_recipe(
        "lora_llava",
        model_name_or_path=base_folder(),
        dataset=bare,
        taxonomy=tmp_path / "taxonomy.yaml",
        output_dir=tmp_path / "run",
        least_groups=10,
        test_rows=16,
        eval_rows=8,
        **TRAINER_OPTIONS | {"max_steps": 1},
    )
    assert "column 'File Name' is read as 'path'" in printed
    assert "96 rows name no split, so splits were drawn by category: " in printed
    if several:
        assert (
            "unsafe rows name no category; they are asked about under all 4 categories together only"
            in printed
        )
        assert "--categories" not in printed  # of fewer categories nothing was learned
    else:
        assert "the taxonomy has one category, so unsafe means that one" in printed
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    after = metrics["after"]
    assert after["f1"] is not None
    assert (after["pair_score"], after["safe_to_unsafe"]) == (None, None)
    assert (after["category_accuracy"] is None) or not several
    assert (tmp_path / "run" / "report.html").is_file()
    [example] = load_examples(bare, split="test", taxonomy=taxonomy, limit=1).examples
    scores = load_classifier(tmp_path / "run", device="cpu").score(
        [open_image(example.image)], [None], taxonomy
    )
    assert 0 <= scores.unsafe[0] <= 1
