"""MiniLM out of its wheel: meaning, and agreement with small-clip's text side."""

import torch

from judge.standins.minilm import MiniLM


def test_words_that_mean_the_same_are_close_and_batches_do_not_matter() -> None:
    model = MiniLM()
    texts = ["a gun", "a pistol", "a piece of cake with candles on it"]
    rows = model.embed(texts)
    assert torch.allclose(rows.norm(dim=-1), torch.ones(3), atol=1e-5)
    close, far = float(rows[0] @ rows[1]), float(rows[0] @ rows[2])
    assert close > 0.7 > 0.3 > far
    assert torch.allclose(rows, model.embed(texts, batch_size=1), atol=1e-5)
