"""judge/runs/checkpoint.py: a loop that was stopped goes on as if it had not been."""

import pytest
import torch
from accelerate import PartialState
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from judge.errors import CheckpointError
from judge.runs.checkpoint import TrainingState

SCHEDULES = {
    "cosine": lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (step + 1)),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=6),
}


def loop(path, schedule="cosine", *, stop=6, width=3):
    """Six noisy steps of AdamW on a linear layer, or fewer; gives its weights, and the losses in order."""
    torch.manual_seed(0)
    layer, generator = torch.nn.Linear(width, 1), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    state = TrainingState(
        path, list(layer.parameters()), optimizer, SCHEDULES[schedule](optimizer), generator
    )
    losses = state.load().get("losses", [])
    for _ in range(len(losses), stop):
        inputs = torch.randn(4, width, generator=generator) + torch.randn(4, width)
        loss = layer(inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state.schedule.step()
        losses.append(loss.item())
        state.save(losses=losses)
    return torch.cat([weight.detach().flatten() for weight in layer.parameters()]), losses


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_stopped_loop_goes_on_as_itself(tmp_path, schedule):
    weights, losses = loop(None, schedule)
    path = tmp_path / "state.safetensors"
    loop(path, schedule, stop=3)
    torch.randn(5)  # whatever else was drawn in between
    again, continued = loop(path, schedule)
    assert continued == losses
    torch.testing.assert_close(again, weights, rtol=0, atol=0)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    done, _ = loop(path, schedule)  # nothing is left to do
    torch.testing.assert_close(done, weights, rtol=0, atol=0)


def test_a_state_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    loop(path, stop=1)
    with pytest.raises(CheckpointError, match="holds other weights"):
        loop(path, width=4)
    with monkeypatch.context() as several:
        several.setitem(PartialState._shared_state, "num_processes", 2)
        with pytest.raises(CheckpointError, match="written by 1 processes, not 2"):
            loop(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"cannot be read .*delete it"):
        loop(path)
