"""recipes/lora_llava.py trains every family that a judge can have, and each image passes its tower once."""

import json

import pytest

from judge import load_classifier
from judge.vlm.random_bases import RANDOM_BASES
from judge.vlm.training.trainer import ImageFeatureCache

# All other tests train a LLaVA-1.5, and SmolVLM is Idefics3 with another processor.
FAMILIES = [family for family in RANDOM_BASES if family not in ("llava", "idefics3")]
COMPARED = ("llava_next", "qwen3_vl", "gemma3", "internvl")
"""Tiles, several depths, one row of tokens: the others' features are kept like one of these.

In all families `test_judge_attention` compares kept features with those of the pixels.
"""


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
    if family in COMPARED:
        straight = train_here(base_folder(family), "straight", known=run.asked, keep_features=False).path
        assert len(seen) == 3
        assert step_losses(kept) == pytest.approx(step_losses(straight), rel=1e-5)
    found = load_classifier(kept)
    assert json.loads((kept / "metrics.json").read_text())["after"]["unjudged"] == 0
    assert found.score([noise_image(0)], None, found.default_taxonomy).reasons == (None,)
