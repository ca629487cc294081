"""recipes/lora_llava.py trains every family that a judge can have, and each image passes its tower once."""

import json

import pytest

from judge import load_classifier
from judge.vlm.training.trainer import ImageFeatureCache

FAMILIES = ("llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_with_kept_features_as_without(
    train_here, base_folder, family, step_losses, noise_image, monkeypatch
):
    seen = []
    get = ImageFeatureCache.get
    monkeypatch.setattr(
        ImageFeatureCache, "get", lambda self, *given: seen.append(get(self, *given)) or seen[-1]
    )
    run = train_here(base_folder(family), "kept")
    kept = run.path
    assert len(seen) == 3
    assert all(found is not None for found in seen), "this family's pixels were not told apart"
    straight = train_here(base_folder(family), "straight", known=run.asked, keep_features=False).path
    assert len(seen) == 3
    assert step_losses(kept) == pytest.approx(step_losses(straight), rel=1e-5)
    found = load_classifier(kept)
    assert json.loads((kept / "metrics.json").read_text())["after"]["unjudged"] == 0
    assert found.score([noise_image(0)], None, found.default_taxonomy).reasons == (None,)
