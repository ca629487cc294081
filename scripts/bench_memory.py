"""Compare estimated memory with measured memory, on a random LLaVA whose shape is chosen.

    python scripts/bench_memory.py                    # mid: 8 blocks of width 768, on a CPU, about 2 minutes
    python scripts/bench_memory.py --policy 4000      # characters of the policy's definitions

For each task, in a process of its own: what `judge.vlm.memory` computes, what autograd really keeps (every tensor that
is saved for the backward pass, by storage, without weights), and the highest resident memory above the loaded model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from judge.standins.random_llava import random_llava
from judge.vlm.adapter import LoraOptions, add_lora
from judge.vlm.architecture import find_architecture, measure_config
from judge.vlm.encode import ChatEncoder
from judge.vlm.load import BaseOptions, load_base
from judge.vlm.memory import Batch, estimate, judging_bytes, key_value_bytes, training_bytes
from judge.vlm.score import VisionLanguageJudge
from judge.vlm.training.attention import register
from judge.vlm.training.collate import GroupCollator
from judge.vlm.training.trainer import answer_loss
from prompts import Category, Example, Group, Row, Taxonomy

TASKS = ("judge", "lora", "lora, checkpointing", "qlora, weights only")


def main() -> None:
    """Measure every task in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--size", default="mid", help="tiny or mid")
    parser.add_argument("--policy", type=int, default=2500, help="characters of all definitions")
    parser.add_argument("--rows", type=int, default=4, help="images of a policy")
    parser.add_argument("--lora_r", type=int, default=16)
    parser.add_argument("--one", choices=TASKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return
    print(f"{'':22}{'estimate':>10}{'kept':>10}{'peak':>10}   estimate / peak    (MB)")
    for task in TASKS:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", task]
        # Else the C library keeps what is freed, and a peak would seem lower than it is.
        returning = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=returning)
        found = json.loads(done.stdout.splitlines()[-1])
        kept = "" if found["kept"] is None else f"{found['kept'] / 1e6:.0f}"
        peak, estimated = found["peak"] / 1e6, found["estimate"] / 1e6
        print(f"{task:22}{estimated:10.0f}{kept:>10}{peak:10.0f}   {estimated / peak:.2f}")


def measure(task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Bytes of one task: estimated, kept by autograd, and at the peak above the loaded model."""
    torch.set_num_threads(1)
    if task == "qlora, weights only":
        return measure_nf4(options.size)
    model, processor = random_llava(options.size)
    group = draw_group(options)
    tokens = model.config.image_seq_length
    base = measure_config("random", model.config, tokens, tokens)
    policy = len(ChatEncoder(processor).split(ChatEncoder(processor).text(_chat(group)))[0])
    batch = Batch(policy, options.rows, checkpointing=task.endswith("checkpointing"))
    if task == "judge":
        judge = VisionLanguageJudge(model, processor, batch_size=options.rows)
        images, policies = [row.example.image for row in group.rows], key_value_bytes(base, 4) * policy
        judge.score(images[:1], None, Taxonomy("other", "1", (Category("warm", "up"),)))
        peak = peak_of(lambda: judge.score(images, None, group.taxonomy))
        return {"estimate": judging_bytes(base, batch, 4) + policies, "kept": None, "peak": peak}
    step = Step(model, processor, group, options.lora_r, batch.checkpointing)
    step.run()  # gradients are there and kernels are chosen
    kept = step.kept_bytes()
    return {
        "estimate": training_bytes(base, batch, options.lora_r, 4),
        "kept": kept,
        "peak": peak_of(step.run),
    }


def measure_nf4(size: str) -> dict[str, Any]:
    """Bytes of all weights and scales of a base in NF4; needs bitsandbytes."""
    with tempfile.TemporaryDirectory() as folder:
        for part in random_llava(size, dtype="bfloat16"):
            part.save_pretrained(folder)
        base = find_architecture(folder)
        model, _ = load_base(BaseOptions(folder, dtype="bfloat16", load_in_4bit=True))
    tensors = [parameter.data for parameter in model.parameters()]
    states = [parameter.quant_state for parameter in model.parameters() if hasattr(parameter, "quant_state")]
    tensors += [scales for state in states for scales in (state.absmax, state.state2.absmax)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return {"estimate": estimate(base, "qlora").weights, "kept": None, "peak": sum(storages.values())}


class Step:
    """Forward and backward pass of one group."""

    def __init__(self, model: Any, processor: Any, group: Group, rank: int, checkpointing: bool) -> None:
        model.set_attn_implementation({"text_config": register()})
        self.model, _ = add_lora(model, LoraOptions(lora_r=rank), base="random")
        if checkpointing:
            self.model.enable_input_require_grads()
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        self.model.train()
        self.batch = GroupCollator(ChatEncoder(processor), 8192, self.model)([group])
        for key in ("image_ids", "image_lengths"):
            self.batch.pop(key, None)
        self.labels = self.batch.pop("labels")

    def forward(self) -> Any:
        """The loss."""
        return answer_loss(self.model(**self.batch, use_cache=False), self.labels)

    def run(self) -> None:
        """Both passes."""
        self.forward().backward()

    def kept_bytes(self) -> int:
        """Bytes of all storages that the forward pass saves for the backward pass, weights left out."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.forward()
        loss.backward()
        return sum(seen.values())


def peak_of(work: Any) -> int:
    """The highest resident memory while `work` runs, above that before it; Linux only."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _chat(group: Group) -> Any:
    from prompts import render

    return render(group.taxonomy)


def draw_group(options: argparse.Namespace) -> Group:
    """Rows of noise under a policy of ten categories with `--policy` characters of definitions in all."""
    definition = ("pictures in which people are hurt or threatened, " * 99)[: options.policy // 10].rstrip(
        ", "
    )
    taxonomy = Taxonomy("random", "1", tuple(Category(f"name {n}", definition) for n in range(10)))
    random = np.random.default_rng(0)
    rows = []
    for number in range(options.rows):
        image = Image.fromarray(random.integers(0, 255, (336, 336, 3), dtype=np.uint8))
        category = f"name {number}" if number % 2 else None
        example = Example(str(number), image)
        rows.append(
            Row(example, taxonomy, "a photo of a street", None, number % 2 == 1, category, None, "keep")
        )
    return Group(taxonomy, tuple(rows))


if __name__ == "__main__":
    main()
