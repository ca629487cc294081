"""Time and memory of one training step: TRL's stock vision-language SFT against policy-grouped rows.

    python scripts/bench_train.py                                    # mid-size model, 2 CPU threads
    python scripts/bench_train.py --size 7b --device cuda --dtype bfloat16

The model has random weights and LLaVA-1.5's layout (`judge/standins/random_llava.py`; 576 image tokens, 32,000 tokens,
`7b`: LLaVA-1.5-7B's shape); the rows are drawn by `prompts.flip` under the whole taxonomy, 8 to a policy, on images
of noise. Each competitor trains LoRA r 16 on the same rows, through its own trainer, its own collator and its own
loss, in a process of its own. TRL's batch is its default, 8 rows, when the group has 8.

TRL's defaults checkpoint activations; it is compared with and without, and across. On a CPU, TRL computes logits at
every position; "answer-only head" is what it does on a GPU. Loss and LoRA gradients of the first step must agree.

Peak memory on a CPU is resident memory, measured in a run of its own in which freed tensors are returned to the system
at once; otherwise the allocator keeps several times what is in use. On CUDA it is what torch allocated.

The mid size takes about 20 minutes on 2 cores of an x86 server and 12 GB. On 2 quiet cores ours processed 2.5 times the
samples per second of TRL's answer-only head at 0.62 of its memory, both without checkpointing; the rest is in
docs/measured.md.
The last line is JSON; `--only NAME ...` measures some competitors only.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments
from transformers.utils import logging

from eval.timing import synchronise
from judge.runs.machine import device_name
from judge.standins.noise import noise_posts
from judge.standins.random_llava import random_llava
from judge.vlm.adapter import LoraOptions, add_lora
from judge.vlm.encode import ChatEncoder
from judge.vlm.training.attention import register
from judge.vlm.training.collate import GroupCollator
from judge.vlm.training.trainer import JudgeTrainer
from prompts import Example, FlipOptions, Group, draw_groups, load_taxonomy, render


@dataclass(frozen=True)
class Competitor:
    """One way to train on the rows."""

    title: str
    ours: bool
    checkpointing: bool
    answer_head: bool = False  # TRL's trainer with the head at answer positions only
    kept_features: bool = False  # ours from the second epoch on: images have passed the frozen tower before


COMPETITORS = {
    "trl": Competitor("TRL, its defaults", False, True),
    "trl_plain": Competitor("TRL, no checkpointing", False, False),
    "trl_answers": Competitor("TRL, answer-only head", False, True, answer_head=True),
    "trl_answers_plain": Competitor("TRL, answer-only, no checkpointing", False, False, answer_head=True),
    "ours": Competitor("grouped by policy, checkpointing", True, True),
    "ours_plain": Competitor("grouped by policy", True, False),
    "ours_kept": Competitor("grouped by policy, image features kept", True, False, kept_features=True),
}

PAIRS = {
    "": ("ours", "trl"),
    "_no_checkpointing": ("ours_plain", "trl_plain"),
    "_answer_head": ("ours", "trl_answers"),
    "_answer_head_no_checkpointing": ("ours_plain", "trl_answers_plain"),
    "_plain_to_defaults": ("ours_plain", "trl"),
    "_kept_features_to_defaults": ("ours_kept", "trl"),
}
"""Suffix of a ratio's key -> the pair it compares; the first four differ only in the method."""
RATIOS = {
    "samples_per_second_ratio": "samples_per_second",
    "peak_memory_ratio": "above_loaded_bytes",
    "whole_peak_memory_ratio": "peak_bytes",
}


def main() -> None:
    """Measure each competitor in a fresh process, compare them, print the results."""
    options = parse()
    if options.one:
        print(json.dumps(measure(COMPETITORS[options.one], options)))
        return
    names = options.only or list(COMPETITORS)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            found[name] = run_process(name, folder)
            if options.device == "cpu" and options.size != "tiny":
                # Larger allocations than this are mapped, and unmapped when freed.
                mapped = run_process(name, folder, "--steps", "0", MALLOC_MMAP_THRESHOLD_="65536")
                found[name] |= {key: mapped[key] for key in ("peak_bytes", "above_loaded_bytes")}
            print(f"measured {name}: {found[name]['samples_per_second']:.3f} samples/s", flush=True)
        gradients = {name: load_file(Path(folder) / f"{name}.safetensors") for name in names}
    print_table(found, options)
    print(json.dumps(summarise(found, gradients, options)))


def run_process(name: str, folder: str, *extra: str, **environment: str) -> dict[str, Any]:
    """One competitor in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], *extra, "--one", name, "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    if done.returncode:
        raise SystemExit(f"{done.stderr}\n{name} failed with exit code {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


def parse() -> argparse.Namespace:
    """The command line; `--one` and `--folder` are for the processes that this script starts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("tiny", "mid", "7b"), default="mid")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="measured steps, after one to warm up")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--taxonomy", default="unsafebench")
    parser.add_argument("--only", nargs="+", choices=COMPETITORS)
    parser.add_argument("--one", choices=COMPETITORS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def draw_group(options: argparse.Namespace, folder: Path) -> Group:
    """One group under the whole taxonomy, on images of noise stored as PNG."""
    taxonomy = load_taxonomy(options.taxonomy)
    keys = [*taxonomy.keys, *[None] * len(taxonomy)]  # one unsafe example per category, and as many safe ones
    examples = []
    for number, (key, (image, prompt)) in enumerate(zip(keys, noise_posts(len(keys)), strict=True)):
        path = folder / f"{number}.png"
        image.save(path)
        examples.append(Example(str(number), path, prompt, frozenset(() if key is None else (key,))))
    flip = FlipOptions(
        min_categories=len(taxonomy), max_categories=len(taxonomy), group_size=options.group_size, custom=0.0
    )
    return draw_groups(examples, taxonomy, flip.plain, seed=0, epoch=0, groups=1)[0]


def measure(competitor: Competitor, options: argparse.Namespace) -> dict[str, Any]:
    """Train a few steps; their time and memory, and the first loss. The first gradients go to a file."""
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    images = options.folder / f"images-{options.one}"
    images.mkdir(exist_ok=True)
    group = draw_group(options, images)
    model, processor = random_llava(options.size, device=options.device, dtype=options.dtype)
    if competitor.ours:
        # The attention mask of packed groups.
        model.set_attn_implementation({"text_config": register()})
    model, _ = add_lora(model, LoraOptions(), base="random")
    randomise_adapters(model)
    build = grouped_trainer if competitor.ours else trl_trainer
    recorder = _Recorder(options.folder / f"{options.one}.safetensors")
    common = {"model": model, "processing_class": processor, "callbacks": [recorder]}
    trainer = build(competitor, options, group, common)
    # Before the first step: the optimizer state counts as memory of training.
    loaded = memory(options.device, reset=True)
    trainer.train()
    peak = memory(options.device)
    taken = statistics.median([b - a for a, b in pairwise(recorder.ends)] or [math.nan])
    encoder = ChatEncoder(processor)
    policy, _ = encoder.split(encoder.text(render(group.taxonomy)))
    return {
        "seconds": taken,
        "samples_per_second": options.group_size / taken,
        "loss": next(log["loss"] for log in trainer.state.log_history if "loss" in log),
        "peak_bytes": peak,
        "above_loaded_bytes": peak - loaded,
        "policy_tokens": len(policy),
        "image_tokens": model.config.image_seq_length,
        "vocabulary": len(processor.tokenizer),
    }


def randomise_adapters(model: Any) -> None:
    """Draw both LoRA matrices: B starts at zero, which makes the gradients of A zero and their comparison empty."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


class _Recorder(TrainerCallback):
    """Records when steps end, and stores the gradients of the first one."""

    def __init__(self, path: Path) -> None:
        self.path, self.ends = path, []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.ends:
            parameters = kwargs["model"].named_parameters()
            save_file({name: p.grad.float().cpu() for name, p in parameters if p.grad is not None}, self.path)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronise()
        self.ends.append(time.perf_counter())


def trainer_options(options: argparse.Namespace) -> dict[str, Any]:
    """Options of both trainers: an epoch is one batch, so every step trains on the same rows."""
    return {
        "output_dir": str(options.folder / options.one),
        "num_train_epochs": options.steps + 1,
        "learning_rate": 1e-5,
        "max_grad_norm": 1e9,  # the norm is computed, as usual, but nothing is clipped
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": options.device == "cpu",
        "bf16": options.dtype == "bfloat16",
        "dataloader_pin_memory": options.device != "cpu",
        "remove_unused_columns": False,
    }


def grouped_trainer(
    competitor: Competitor, options: argparse.Namespace, group: Group, common: dict[str, Any]
) -> Any:
    """Arbiter's trainer: one group is one packed row. Each step opens its images again, as TRL's does."""
    collator = GroupCollator(ChatEncoder(common["processing_class"]), 4096, common["model"])
    collator.pixels.limit = 0  # no cache of opened images
    return JudgeTrainer(
        args=TrainingArguments(
            per_device_train_batch_size=1,
            activation_checkpointing=competitor.checkpointing,
            **trainer_options(options),
        ),
        train_dataset=[group],
        data_collator=collator,
        keep_features=competitor.kept_features,
        **common,
    )


def trl_trainer(
    competitor: Competitor, options: argparse.Namespace, group: Group, common: dict[str, Any]
) -> Any:
    """TRL's trainer, with prompt and completion columns whose image is at the same place as in our chat."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature
    from trl import SFTConfig, SFTTrainer

    rows = [chat_columns(row) for row in group.rows]
    part = {"type": Value("string"), "text": Value("string")}
    turns = List({"role": Value("string"), "content": List(part)})
    features = Features({"prompt": turns, "completion": turns, "image": ImageFeature()})
    kind = answer_only(SFTTrainer) if competitor.answer_head else SFTTrainer
    return kind(
        args=SFTConfig(
            per_device_train_batch_size=options.group_size,
            gradient_checkpointing=competitor.checkpointing,
            max_length=None,
            **trainer_options(options),
        ),
        train_dataset=Dataset.from_list(rows, features=features),
        **common,
    )


def chat_columns(row: Any) -> dict[str, Any]:
    """A row in TRL's format: the same chat and the same answer."""
    chat = render(row.taxonomy, row.prompt, focus=row.focus)
    wanted = None if row.category is None else row.taxonomy.index(row.category)
    [answer] = [a for a in chat.answers if a.unsafe == row.unsafe and a.category == wanted]
    prompt = [
        {**turn, "content": [{"type": p["type"], "text": p.get("text")} for p in turn["content"]]}
        for turn in chat.messages
    ]
    completion = [{"role": "assistant", "content": [{"type": "text", "text": answer.text}]}]
    return {"prompt": prompt, "completion": completion, "image": str(row.example.image)}


def answer_only(trainer: type) -> type:
    """A subclass of TRL's trainer that computes logits only where an answer token is predicted."""

    class _AnswerOnly(trainer):  # type: ignore[misc, valid-type]
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Tensor:
            labels = inputs.pop("labels")
            following = F.pad(labels[:, 1:], (0, 1), value=-100)  # (B, S), -100 where nothing is predicted
            predicted = following != -100
            logits = model(**inputs, use_cache=False, logits_to_keep=predicted).logits
            total = F.cross_entropy(logits.float(), following[predicted], reduction="sum")
            return total / (predicted.sum() if num_items_in_batch is None else num_items_in_batch)

    return _AnswerOnly


def memory(device: str, *, reset: bool = False) -> int:
    """Most bytes in use since the last reset; after a reset, the bytes in use now.

    On CUDA the memory of torch's tensors; elsewhere the resident memory of this process, whose peak Linux can reset.
    """
    if device != "cpu":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux: the peak of the whole process, which cannot be reset
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if reset:
        # Resets the peak resident memory (VmHWM) to the current one.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    [line] = [line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def print_table(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Print one line per competitor."""
    one = next(iter(found.values()))
    print(
        f"\n{options.size} on {options.device}, {options.dtype}; {options.group_size} rows a step under one policy of "
        f"{one['policy_tokens']} tokens, {one['image_tokens']} image tokens, {one['vocabulary']:,} in the vocabulary"
    )
    print(f"{'':42}{'s/step':>9}{'samples/s':>11}{'peak MB':>9}{'above model':>12}{'loss':>13}")
    for name, row in found.items():
        print(
            f"{COMPETITORS[name].title:42}{row['seconds']:9.3f}{row['samples_per_second']:11.3f}"
            f"{row['peak_bytes'] / 1e6:9.0f}{row['above_loaded_bytes'] / 1e6:12.0f}{row['loss']:13.8f}"
        )


def summarise(
    found: dict[str, dict[str, Any]], gradients: dict[str, dict[str, Tensor]], options: argparse.Namespace
) -> dict[str, Any]:
    """Ratios of the measurements, and whether all competitors computed the same loss and gradients."""
    # Other orders of summation differ by rounding, in bfloat16 by percents.
    tolerance = 1e-5 if options.dtype == "float32" else 5e-2
    first = next(iter(found))
    losses = [abs(row["loss"] / found[first]["loss"] - 1) for row in found.values()]
    distances = [relative_distance(gradients[first], gradients[name]) for name in found]

    ratios = {
        f"{key}{suffix}": found[left][value] / found[right][value] if {left, right} <= found.keys() else None
        for suffix, (left, right) in PAIRS.items()
        for key, value in RATIOS.items()
    }
    return {
        **ratios,
        "equal_loss": max(losses) < tolerance,
        "loss_difference": max(losses),
        "equal_gradients": max(distances) < tolerance,
        "gradient_difference": max(distances),
        "memory": f"peak above the loaded model, {'resident' if options.device == 'cpu' else 'CUDA allocated'}",
        "rows_per_step": options.group_size,
        "policy_tokens": found[first]["policy_tokens"],
        "competitors": found,
        "machine": device_name(options.device, options.threads),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
    }


def relative_distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Norm of the difference of two sets of gradients, divided by the norm of the first."""
    if left.keys() != right.keys():
        raise SystemExit(f"Different parameters have gradients: {sorted(left.keys() ^ right.keys())[:3]}.")
    difference = sum(float((left[name] - right[name]).square().sum()) for name in left)
    return (difference / sum(float(gradient.square().sum()) for gradient in left.values())) ** 0.5


if __name__ == "__main__":
    main()
