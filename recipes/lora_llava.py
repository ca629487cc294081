"""LoRA-tune a LLaVA-class model into a judge that obeys the user's own list of categories.

    accelerate launch recipes/lora_llava.py

With no options it trains on what ships: real handwritten digits play ten categories, `tiny-llava` (1.9 M parameters)
is the base, two digits are held out of all training. On 2 CPU cores it takes about 5 minutes, leaves `runs/demo`
(adapter, metrics.json, report.html) and prints F1 before and after, both flip directions and held-out categories.

LLaVA-1.5-7B on UnsafeBench, as in the paper (CCS 2025, section 5.2), on GPUs of 40 GB or more, or QLoRA on 24 GB:

    accelerate launch recipes/lora_llava.py --config recipes/configs/lora_llava_7b.yaml
    accelerate launch recipes/lora_llava.py --config recipes/configs/qlora_llava_7b_24gb.yaml
    accelerate launch --config_file recipes/configs/accelerate/zero2.yaml recipes/lora_llava.py --config ...

Every option can stand in the YAML, and all but `flip` on the command line; `--help` lists them; an unknown one stops
the run. A run that was stopped goes on with `--resume_from_checkpoint true`, with the options it was started with; how
often it saves, logs and evaluates may differ, and under `lr_scheduler_type: constant` it may be made longer.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from transformers import set_seed

from eval.metrics.judged import JudgedRow
from eval.obedience.quick import QuickObedience
from eval.predict import summarise_evaluation
from eval.questions import Evaluation, draw_evaluation
from eval.recipe import (
    DataOptions,
    Learned,
    RecipeTrainingArguments,
    check_own_data,
    config_by_data,
    judge_training,
    keep_answers,
    load_splits,
    log,
    open_run,
    parse_options,
    predict_distributed,
    record_lessons,
    resume_from,
    run_recipe,
    try_it,
    write_metrics,
)
from eval.reports.judge_page import format_table
from eval.reports.run_report import write_run_report
from eval.shortcut.check import LEAST_ROWS, ShortcutResult, check_rows
from judge.protocol import Classifier
from judge.runs.folder import RunDir
from judge.runs.resume import explain_interruption
from judge.vlm.adapter import LoraOptions, add_lora, tidy_adapter
from judge.vlm.families import judging_path
from judge.vlm.judging import open_judge
from judge.vlm.load import BaseOptions, check_base, load_base
from judge.vlm.training.paths import build_trainer, prepare_attention, trained_model
from judge.vlm.training.trainer import FlippedGroups
from prompts import format_report, load_taxonomy, report

CONFIG = Path(__file__).parent / "configs" / "lora_llava.yaml"
OWN_DATA = Path(__file__).parent / "configs" / "own_data.yaml"
LOGGED = ("f1", "safe_to_unsafe", "unsafe_to_safe", "category_accuracy", "heldout_f1")
"""Metrics of the evaluations during training."""


@dataclass
class JudgeDataOptions(DataOptions):
    """What is judged, under which categories, and how it is asked."""

    template: str = field(default="policy_first", metadata={"help": "policy_first or perspective."})
    groups_per_epoch: int | None = field(
        default=None, metadata={"help": "Policies an epoch; by default each image is used about twice."}
    )
    least_groups: int = field(
        default=1,
        metadata={"help": "Policies an epoch, however few images, unless groups_per_epoch is given."},
    )

    def groups(self, images: int) -> int:
        """Policies an epoch with so many training images."""
        usual = max(self.least_groups, ceil(2 * images / self.flips.group_size))
        return usual if self.groups_per_epoch is None else self.groups_per_epoch


@dataclass
class JudgeArguments(RecipeTrainingArguments):
    """transformers' own arguments, and what judging and evaluating need; a policy brings `flip.group_size` images."""

    max_length: int = field(
        default=2048,
        metadata={"help": "Most tokens in a row; a longer one stops the run, as it ends in the answer."},
    )
    eval_rows: int = field(default=200, metadata={"help": "Validation questions asked at each evaluation."})
    test_rows: int = field(default=1600, metadata={"help": "Test questions asked before and after training."})
    threshold: float = field(default=0.5, metadata={"help": "P(unsafe) from which an image is flagged."})
    judge_batch_size: int = field(default=8, metadata={"help": "Images in one forward pass when judging."})
    keep_features: bool = field(
        default=True,
        metadata={"help": "Pass each image through the frozen vision tower once and cache the features."},
    )

    @property
    def policies_per_step(self) -> int:
        """Policies in an optimizer step, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def zero3(self) -> bool:
        """Whether DeepSpeed shards the weights, so that no process has a whole model."""
        return self.deepspeed_plugin is not None and self.deepspeed_plugin.zero_stage == 3


OPTIONS = (BaseOptions, LoraOptions, JudgeDataOptions, JudgeArguments)
NEEDED = {"taxonomy": "a YAML file with your categories, or one that ships; `arbiter init` writes yours"}
own_config = config_by_data(CONFIG, OWN_DATA, NEEDED)


def main() -> None:
    """Parse the options, open the run folder, train; what interrupts it is explained."""
    base, lora, data, args = parse_options(OPTIONS, own_config)
    check_base(base)
    check_own_data(data, load_taxonomy(data.taxonomy))
    about = {**base.to_manifest(), "template": data.template}
    run = open_run(args.output_dir, "vlm", load_taxonomy(data.taxonomy), (base, lora, data, args), **about)
    with explain_interruption(run.path):
        train(run, base, lora, data, args)


def train(
    run: RunDir, base: BaseOptions, lora: LoraOptions, data: JudgeDataOptions, args: JudgeArguments
) -> None:
    """Load, evaluate the base, train, evaluate again, report."""
    started = time.time()
    set_seed(args.seed)
    taxonomy, flip = load_taxonomy(data.taxonomy), data.flips
    train_set, validation_set, test_set = load_splits(data, taxonomy, run=run)
    policies = data.groups(sum(not example.violates & flip.held_out for example in train_set.examples))
    dataset = FlippedGroups(train_set.examples, taxonomy, flip, seed=args.seed, groups=policies)
    validation = draw_evaluation(validation_set.examples, taxonomy, flip, seed=args.seed, rows=args.eval_rows)
    test = draw_evaluation(test_set.examples, taxonomy, flip, seed=args.seed, rows=args.test_rows)
    obedience = QuickObedience(test_set.examples, taxonomy, flip, rows=args.obedience_rows, seed=args.seed)
    drawn, shortcut = check_training_rows(dataset, data.template, args.seed)

    # Under ZeRO-3 no process has the whole model, so nothing is judged until it is saved and loaded again.
    model, processor = load_base(base, device=None if args.zero3 else str(args.device))
    prepare_attention(model, processor)
    run.update_manifest(judging_path=judging_path(model))
    judging = {"processor": processor, "template": data.template, "batch_size": args.judge_batch_size}
    as_judge = partial(open_judge, **judging)
    record_lessons(run, dataset.sample_rows(), taxonomy, as_judge(model).policy_tokens)
    before = None if args.zero3 else predict_distributed(as_judge(model), test, "before")
    obedience.ask("before", None if args.zero3 else as_judge(model))
    set_seed(args.seed)  # the same initial adapters whatever loading drew, which differs under ZeRO-3
    model, counts = add_lora(model, lora, base=base.model_name_or_path)
    log(f"LoRA on {counts['modules']} modules: {counts['trainable']:,} of {counts['all']:,} parameters train")
    log(f"{args.world_size} processes, {args.policies_per_step * flip.group_size} rows in a step")

    trainer = build_trainer(
        model,
        processor,
        data.template,
        args.max_length,
        args=args,
        train_dataset=dataset,
        eval_dataset=validation.questions,
        evaluator=None if args.zero3 else partial(evaluate, as_judge, validation, args.threshold),
        keep_features=args.keep_features,
    )
    trainer.train(resume_from_checkpoint=resume_from(args))
    trainer.save_model(str(run.path / "adapter"))

    judge = as_judge(trained_model(trainer, base, run.path / "adapter", zero3=args.zero3))
    after = predict_distributed(judge, test, "after")
    obedience.ask("after", judge)
    if trainer.is_world_process_zero():
        tidy_adapter(run.path / "adapter", base=run.manifest["base"])
        run.write_rows("history", trainer.state.log_history)
        about = {"parameters": counts, "seconds": time.time() - started}
        learned = partial(
            judge_training, test=test_set.examples, taxonomy=taxonomy, held_out=data.held_out,
            history=trainer.state.log_history, train_images=len(train_set.examples),
        )  # fmt: skip
        write_results(run, test, before, after, args.threshold, about, drawn, shortcut, obedience, learned)
        log(f"\n{time.time() - started:.0f} s in all; {run.path}/report.html shows wrong verdicts. Next:")
        log(f"  {try_it(run, test_set.examples, categories=2)}")


def evaluate(
    as_judge: Callable[[Any], Classifier], validation: Evaluation, threshold: float, model: Any
) -> dict[str, float]:
    """Metrics on the validation questions, for the training log."""
    judged = predict_distributed(as_judge(model), validation)
    found = summarise_evaluation(validation, judged, threshold)
    return {key: found[key] for key in LOGGED if found[key] is not None}


def check_training_rows(
    dataset: FlippedGroups, template: str, seed: int
) -> tuple[dict[str, Any], ShortcutResult]:
    """Count the first epoch's rows by kind, and check that text or image facts alone do not give the label away."""
    rows = [row for group in dataset.groups for row in group.rows]
    # Few images make a short epoch; what the check needs is drawn from the next ones too.
    enough = rows if len(rows) >= LEAST_ROWS else dataset.sample_rows(LEAST_ROWS)
    drawn, shortcut = report(rows), check_rows(enough, seed, template=template)
    log(format_report(drawn))
    log(f"shortcut AUCs of these rows: text {shortcut.auc:.3f}, image facts {shortcut.image_auc:.3f}")
    return drawn, shortcut


def write_results(
    run: RunDir,
    test: Evaluation,
    before: list[JudgedRow] | None,
    after: list[JudgedRow],
    threshold: float,
    about: dict[str, Any],
    drawn: dict[str, Any],
    shortcut: ShortcutResult,
    obedience: QuickObedience,
    learned: Callable[..., Learned],
) -> None:
    """Write metrics.json, every judged row and report.html; print the table, and whether anything was learned."""
    judged = ({"before": before} if before else {}) | {"after": after}
    summaries = {name: summarise_evaluation(test, rows, threshold) for name, rows in judged.items()}
    about |= {"taxonomy_hash": run.taxonomy.hash, "obedience": obedience.metrics, "drawn": drawn}
    about |= {**shortcut.metrics, "shortcut": shortcut.to_dict()}
    verdict = learned(summaries.get("before"), summaries["after"])
    write_metrics(run, {"learned": verdict.to_dict(), "before": None, **summaries, **about})
    keep_answers(run, judged, measured="after", threshold=threshold)
    write_run_report(run, [question.row.example for question in test.questions])

    log(f"\n{format_table(summaries.get('before'), summaries['after'])}")
    for key, label in (("heldout_f1", "F1, held-out categories"), ("lying_prompt_f1", "F1, prompt lies")):
        values = [found[key] for found in summaries.values() if found[key] is not None]
        if values:
            log(f"{label:28}" + "  ".join(f"{value:.3f}" for value in values))
    log(f"\n{obedience.summary()}")
    log(f"\n{verdict.to_text()}")


if __name__ == "__main__":
    run_recipe(main)
