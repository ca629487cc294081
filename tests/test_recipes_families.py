"""recipes/lora_llava.py trains every family that a judge can have, and each image passes its tower once."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from judge import load_classifier
from judge.vlm.train import FrozenFeatures

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
FAMILIES = ("llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SHORT = {"limit": 60, "groups_per_epoch": 8, "per_device_train_batch_size": 4, "max_steps": 3, "eval_rows": 4}
SHORT |= {"test_rows": 8, "save_strategy": "no", "use_cpu": True, "held_out": ["four"]}


@pytest.fixture
def train(recipe_config, base_folder, tmp_path, monkeypatch):
    """`train(family, **options)` -> the folder of a run of three steps, made in this process."""

    def run(family, name="run", **options):
        config = tmp_path / f"{name}.yaml"
        given = (
            yaml.safe_load(recipe_config.read_text())
            | SHORT
            | {"model_name_or_path": str(base_folder(family))}
            | options
        )
        config.write_text(yaml.safe_dump(given))
        arguments = ["--config", str(config), "--output_dir", str(tmp_path / name)]
        # Neither depends on the family, and they take longer than all the rest.
        monkeypatch.setattr("eval.shortcut.check_rows", lambda *_, **__: SimpleNamespace(auc=0.5))
        monkeypatch.setattr("eval.report.write_report", lambda *_, **__: None)
        monkeypatch.setattr(sys, "argv", ["lora_llava.py", *arguments])
        spec = importlib.util.spec_from_file_location("lora_llava", RECIPES / "lora_llava.py")
        recipe = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "lora_llava", recipe)  # its arguments are pickled beside the adapter
        spec.loader.exec_module(recipe)
        recipe.main()
        return tmp_path / name

    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_with_kept_features_as_without(train, family, step_losses, noise_image, monkeypatch):
    seen = []
    of = FrozenFeatures.of
    monkeypatch.setattr(FrozenFeatures, "of", lambda self, *given: seen.append(of(self, *given)) or seen[-1])
    kept = train(family, "kept")
    assert len(seen) == 3
    assert all(found is not None for found in seen), "this family's pixels were not told apart"
    straight = train(family, "straight", keep_features=False)
    assert len(seen) == 3
    assert step_losses(kept) == pytest.approx(step_losses(straight), rel=1e-5)
    found = load_classifier(kept)
    assert json.loads((kept / "metrics.json").read_text())["after"]["unjudged"] == 0
    assert found.score([noise_image(0)], None, found.default_taxonomy).reasons == (None,)
