"""LoRA-tune a LLaVA-class model into a judge that obeys the user's own list of categories.

    accelerate launch recipes/lora_llava.py

With no options it trains on what ships: real handwritten digits play ten categories, `tiny-llava` (1.6 M parameters)
is the base, two digits are held out of all training. On 2 CPU cores it takes about 5 minutes, leaves `runs/demo`
(adapter, metrics.json, report.html) and prints F1 before and after, both flip directions and held-out categories.

LLaVA-1.5-7B on UnsafeBench, as in the paper (CCS 2025, section 5.2), on GPUs of 40 GB or more, or QLoRA on 24 GB:

    accelerate launch recipes/lora_llava.py --config recipes/configs/lora_llava_7b.yaml
    accelerate launch recipes/lora_llava.py --config recipes/configs/qlora_llava_7b_24gb.yaml
    accelerate launch --config_file recipes/configs/accelerate/zero2.yaml recipes/lora_llava.py --config ...

Every option can stand in the YAML, and all but `flip` on the command line; `--help` lists them; an unknown one stops
the run. A run that was stopped goes on with `--resume_from_checkpoint true`, under the options it was begun with; how
often it saves, logs and evaluates may differ, and under `lr_scheduler_type: constant` it may be made longer.
"""

import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import TrainingArguments, set_seed

from eval.closing import try_it
from eval.metrics.judged import JudgedRow
from eval.options import RecipeOptions, parse_options, resume_from, resumes
from eval.predict import predict_questions, summarise_evaluation
from eval.questions import Evaluation, draw_evaluation
from eval.reports.judge_page import format_table, write_report
from eval.shortcut.check import check_rows
from judge.data.examples import ExampleSet, check_splits, load_examples
from judge.data.images import open_image
from judge.errors import ConfigError
from judge.runs.folder import RunDir
from judge.runs.machine import environment
from judge.runs.resume import check_options, explain_interruption
from judge.vlm.adapter import LoraOptions, add_lora, tidy_adapter
from judge.vlm.encode import ChatEncoder
from judge.vlm.load import BaseOptions, load_base
from judge.vlm.score import VisionLanguageJudge
from judge.vlm.training.attention import register
from judge.vlm.training.collate import GroupCollator
from judge.vlm.training.trainer import FlippedGroups, JudgeTrainer
from prompts import FlipOptions, Taxonomy, format_report, load_taxonomy, report
from prompts.errors import ArbiterError
from prompts.printable import error_line, printable_lines

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "lora_llava.yaml"


@dataclass
class DataOptions(RecipeOptions):
    """What is judged, under which categories."""

    dataset: str = field(
        default="digits",
        metadata={
            "help": "digits, unsafebench, folder:PATH, dataset:NAME or an external set (judge.data.examples)."
        },
    )
    taxonomy: str = field(default="digits", metadata={"help": "A taxonomy that ships, or a YAML file."})
    held_out: list[str] = field(
        default_factory=list, metadata={"help": "Keys of categories that no training policy may contain."}
    )
    template: str = field(default="policy_first", metadata={"help": "policy_first or perspective."})
    flip: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "Label flipping: any field of prompts.FlipOptions. In a YAML only."},
    )
    groups_per_epoch: int | None = field(
        default=None, metadata={"help": "Policies an epoch; by default each image is used about twice."}
    )
    max_failures: float = field(
        default=0.01, metadata={"help": "Largest share, 0 to 1, of unusable rows before the run stops."}
    )
    limit: int | None = field(default=None, metadata={"help": "Use at most so many rows of each split."})


@dataclass
class JudgeArguments(TrainingArguments):
    """transformers' own arguments, with defaults for judges and what evaluation needs.

    A batch is made of policies: `per_device_train_batch_size` counts policies, and each brings
    `flip.group_size` images.
    """

    max_length: int = field(
        default=2048,
        metadata={"help": "Most tokens in a row; a longer one stops the run, as a cut loses its answer."},
    )
    eval_rows: int = field(default=200, metadata={"help": "Validation questions asked at each evaluation."})
    test_rows: int = field(default=1600, metadata={"help": "Test questions asked before and after training."})
    threshold: float = field(default=0.5, metadata={"help": "P(unsafe) from which an image is flagged."})
    judge_batch_size: int = field(default=8, metadata={"help": "Images in one forward pass when judging."})
    keep_features: bool = field(
        default=True,
        metadata={"help": "Pass each image through the frozen vision tower once and keep the features."},
    )

    def __post_init__(self) -> None:
        self.remove_unused_columns = False
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                # Not told so, accelerate would wrap no model, or find no backend for DeepSpeed.
                self.use_cpu, self.ddp_backend = True, "gloo"
        super().__post_init__()


def main() -> None:
    """Parse the options, open the run folder, train; what stops it on the way is explained."""
    base, lora, data, args = parse()
    run = open_run(base, lora, data, args)
    with explain_interruption(run.path):
        train(run, base, lora, data, args)


def train(run: RunDir, base: BaseOptions, lora: LoraOptions, data: DataOptions, args: JudgeArguments) -> None:
    """Load, ask, train, ask again, report."""
    started = time.time()
    set_seed(args.seed)
    taxonomy = load_taxonomy(data.taxonomy)
    flip = FlipOptions(held_out=frozenset(data.held_out), **data.flip)
    lessons, validation, test = load_splits(data, taxonomy, run)

    dataset = FlippedGroups(lessons.examples, taxonomy, flip, seed=args.seed, groups=data.groups_per_epoch)
    in_loop = draw_evaluation(validation.examples, taxonomy, flip, seed=args.seed, rows=args.eval_rows)
    final = draw_evaluation(test.examples, taxonomy, flip, seed=args.seed, rows=args.test_rows)
    rows = [row for group in dataset.groups for row in group.rows]
    drawn, shortcut = report(rows), check_rows(rows, args.seed, template=data.template)
    say(format_report(drawn))
    say(f"text-only shortcut check on these rows: AUC {shortcut.auc:.3f} (0.5 is chance)")

    model, processor = load_base(base, device=None if zero3(args) else str(args.device))
    judge = VisionLanguageJudge(model, processor, data.template, batch_size=args.judge_batch_size)
    before = None if zero3(args) else ask(judge, final, "before")
    model.set_attn_implementation({"text_config": register()})
    set_seed(args.seed)  # adapters start alike, whatever loading drew, which differs under ZeRO-3
    model, counts = add_lora(model, lora, base=base.model_name_or_path)
    say(f"LoRA on {counts['modules']} modules: {counts['trainable']:,} of {counts['all']:,} parameters train")
    say(f"{step_size(args, flip)}, {len(dataset)} policies an epoch")

    def evaluate(current: Any) -> dict[str, float]:
        """Short numbers on validation questions; ZeRO-3 has no whole model to ask while it trains."""
        if zero3(args):
            return {}
        asked = VisionLanguageJudge(current, processor, data.template, batch_size=args.judge_batch_size)
        found = summarise_evaluation(in_loop, ask(asked, in_loop), args.threshold)
        keys = ("f1", "safe_to_unsafe", "unsafe_to_safe", "category_accuracy", "heldout_f1")
        return {key: found[key] for key in keys if found[key] is not None}

    trainer = JudgeTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        eval_dataset=in_loop.questions,
        data_collator=GroupCollator(ChatEncoder(processor, data.template), args.max_length, model),
        processing_class=processor,
        evaluator=evaluate,
        keep_features=args.keep_features,
    )
    trainer.train(resume_from_checkpoint=resume_from(args))
    trainer.save_model(str(run.path / "adapter"))

    after = ask(trained(run, trainer, processor, base, data, args), final, "after")
    if trainer.is_world_process_zero():
        extra = {
            "shortcut_auc": shortcut.auc,
            "seconds": time.time() - started,
            "parameters": counts,
            "taxonomy_hash": taxonomy.hash,
        }
        summaries = write_results(run, final, before, after, extra, args)
        run.write_rows("history", trainer.state.log_history)
        write_pictures(run, final, before, after, trainer, drawn, shortcut, summaries, args)
        show(run, summaries, time.time() - started, try_it(run, test.examples, categories=2))


def parse() -> tuple[BaseOptions, LoraOptions, DataOptions, JudgeArguments]:
    """Defaults, then the recipe's YAML, then that of `--config`, then the command line; unknown keys stop the run."""
    groups = (BaseOptions, LoraOptions, DataOptions, JudgeArguments)
    return parse_options(groups, DEFAULT_CONFIG, sys.argv[1:])


def open_run(base: BaseOptions, lora: LoraOptions, data: DataOptions, args: JudgeArguments) -> RunDir:
    """The run folder, made by the first process; the others wait for it."""
    state = PartialState()
    if state.is_main_process:
        taxonomy, resume = load_taxonomy(data.taxonomy), resumes(args)
        about = {**base.to_manifest(), "template": data.template}
        options = {**asdict(base), **asdict(lora), **asdict(data), **args.to_dict()}
        options["processes"] = args.world_size
        if resume:
            RunDir(args.output_dir).check_resumable(taxonomy, **about)
            check_options(args.output_dir, options, checkpoint=resume_from(args))
        run = RunDir.create(args.output_dir, kind="vlm", resume=resume, **about)
        run.write_taxonomy(taxonomy)
        run.write_environment()
        run.write_config(options)
    state.wait_for_everyone()
    return RunDir.open(args.output_dir, kind="vlm")


def load_splits(data: DataOptions, taxonomy: Taxonomy, run: RunDir) -> list[ExampleSet]:
    """Train, validation and test examples; no image in two of them; what could not be used is listed."""
    splits = [
        load_examples(
            data.dataset,
            split=split,
            taxonomy=taxonomy,
            max_failures=data.max_failures,
            limit=data.limit,
            ledger=run.path / f"skipped-{split}.jsonl" if PartialState().is_main_process else None,
        )
        for split in ("train", "validation", "test")
    ]
    check_splits(*splits)
    skipped = sum(len(examples.skipped) for examples in splits)
    sizes = ", ".join(f"{len(examples.examples):,} {examples.name}" for examples in splits)
    say(f"{sizes}; {skipped} rows could not be used (listed in skipped-SPLIT.jsonl, if any)")
    return splits


def ask(judge: VisionLanguageJudge, evaluation: Evaluation, name: str = "") -> list[JudgedRow]:
    """Judge an evaluation's questions, shared out over the processes; every process gets all verdicts."""
    state = PartialState()
    with (
        state.split_between_processes(list(evaluation.questions)) as mine,
        tqdm(total=len(mine), desc=f"judging {name}", disable=not name or not state.is_main_process) as bar,
    ):
        judged = predict_questions(judge, mine, progress=lambda done: bar.update(done - bar.n))
    return gather_object(judged) if state.num_processes > 1 else judged


def trained(
    run: RunDir,
    trainer: JudgeTrainer,
    processor: Any,
    base: BaseOptions,
    data: DataOptions,
    args: JudgeArguments,
) -> VisionLanguageJudge:
    """The judge as it was trained; after ZeRO-3, whose weights are spread out, as it was saved."""
    # Without the trainer's mixed precision: whoever loads the run has none.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if zero3(args):
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        from judge.vlm.adapter import load_adapter

        PartialState().wait_for_everyone()
        unset_hf_deepspeed_config()
        fresh, _ = load_base(base, device=str(args.device))
        model = load_adapter(fresh, run.path / "adapter")
    return VisionLanguageJudge(model.eval(), processor, data.template, batch_size=args.judge_batch_size)


def write_results(
    run: RunDir,
    final: Evaluation,
    before: list[JudgedRow] | None,
    after: list[JudgedRow],
    extra: dict[str, Any],
    args: JudgeArguments,
) -> dict[str, Any]:
    """metrics.json and every judged row; gives the summaries before and after back."""
    tidy_adapter(run.path / "adapter", base=run.manifest["base"])
    summaries = {
        "before": summarise_evaluation(final, before, args.threshold) if before else None,
        "after": summarise_evaluation(final, after, args.threshold),
    }
    place = environment()
    about = {"machine": place["machine"], "versions": place["packages"], "commit": place["git"]}
    run.write_metrics({**summaries, **extra, **about})
    run.write_rows("after", (row.to_dict() for row in after))
    if before:
        run.write_rows("before", (row.to_dict() for row in before))
    return summaries


def write_pictures(
    run: RunDir,
    final: Evaluation,
    before: list[JudgedRow] | None,
    after: list[JudgedRow],
    trainer: JudgeTrainer,
    drawn: dict[str, Any],
    shortcut: Any,
    summaries: dict[str, Any],
    args: JudgeArguments,
) -> None:
    """report.html and its plots."""
    images = {question.id: question.row.example.image for question in final.questions}
    count = len(final.flips)
    special = {
        name: {key: value for key, value in found.items() if key.startswith(("heldout", "lying"))}
        for name, found in summaries.items()
        if found
    }
    write_report(
        run,
        before[:count] if before else None,
        after[:count],
        trainer.state.log_history,
        images=lambda row: open_image(images[row.id]),
        drawn=drawn,
        shortcut=shortcut,
        extra={f"Held-out categories and lying prompts, {name}": table for name, table in special.items()},
        threshold=args.threshold,
    )


def show(run: RunDir, summaries: dict[str, Any], seconds: float, following: str) -> None:
    """The table, the folder, and what to type next."""
    before, after = summaries["before"], summaries["after"]
    say("")
    say(format_table(before, after))
    for key, label in (("heldout_f1", "F1, held-out categories"), ("lying_prompt_f1", "F1, prompt lies")):
        values = [found[key] for found in (before, after) if found and found[key] is not None]
        say(f"{label:28}" + "  ".join(f"{value:.3f}" for value in values))
    say(f"\n{seconds:.0f} s in all; {run.path}/report.html shows the curves and the wrong verdicts. Next:")
    say(f"  {following}")


def step_size(args: JudgeArguments, flip: FlipOptions) -> str:
    """How many processes share a step, and how many rows it takes over all of them."""
    policies = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return f"{args.world_size} processes, {policies * flip.group_size} rows in a step"


def zero3(args: JudgeArguments) -> bool:
    """Whether weights are spread over the processes."""
    plugin = args.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == 3


def say(text: str) -> None:
    """Print once, not once a process."""
    if PartialState().is_main_process:
        print(printable_lines(text), flush=True)


if __name__ == "__main__":
    # peft still asks transformers 5.23 by a name that v6 will drop; nobody here can change that.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    try:
        main()
    except (ArbiterError, ConfigError) as error:
        raise SystemExit(f"error: {error_line(error)}") from None
