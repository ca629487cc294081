"""Distil the judge into the cross-attention student: any taxonomy, at the cost of one image encoder pass.

    accelerate launch recipes/distill_cross_attention.py

With no options it distils the judge of `make demo` (`runs/demo`) on what ships: digits, `tiny-clip` as the frozen
encoder, two digits held out of all training. On 2 CPU cores it takes about a minute, and leaves `runs/student` (head,
metrics.json, and the judge's scores as a data set in `lessons/`). It prints the student's F1 beside the judge's on the
same rows, both flip directions, held-out categories, and the heads named in `baselines`.

A CLIP, UnsafeBench and a served judge, in a YAML of your own:

    accelerate launch recipes/distill_cross_attention.py --config my.yaml

    encoder: openai/clip-vit-base-patch32
    teacher: http://localhost:8000/v1#my-judge
    dataset: unsafebench
    taxonomy: unsafebench

Every option can stand in the YAML, and all but `flip` and `distill` on the command line; `--help` lists them; an
unknown one stops the run.
"""

import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import TrainingArguments, set_seed

from eval.closing import try_it
from eval.metrics.judged import JudgedRow, summarise
from eval.options import RecipeOptions, parse_options, resume_from, resumes
from eval.predict import predict_questions, summarise_evaluation
from eval.questions import Evaluation, draw_evaluation
from judge import load_classifier
from judge.data.examples import check_splits, load_examples
from judge.data.images import open_image
from judge.encoders.dual import DualEncoder
from judge.encoders.features import encode_images, encode_texts
from judge.encoders.phrase_embeddings import PhraseEmbeddings
from judge.errors import ConfigError
from judge.runs.folder import RunDir
from judge.runs.machine import environment
from judge.runs.references import teacher_identity
from judge.runs.resume import check_options, explain_interruption
from judge.student.distill import Distillation, DistillTrainer, calibrate_head
from judge.student.distill_data import DistillCollator, DistillOptions, VariedGroups
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student, save_student
from judge.student.teacher_scores import (
    ScoredGroup,
    read_teacher_scores,
    write_teacher_scores,
)
from prompts import Example, FlipOptions, Group, Taxonomy, draw_groups, load_taxonomy
from prompts.errors import ArbiterError
from prompts.printable import error_line, printable_lines

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "distill_cross_attention.yaml"


@dataclass
class StudentOptions(RecipeOptions):
    """Who teaches whom."""

    teacher: str = field(
        default="runs/demo",
        metadata={"help": "Any classifier: a run folder, a hub id, or URL#model of a server."},
    )
    encoder: str = field(
        default="tiny-clip", metadata={"help": "A CLIP or SigLIP: hub id, folder, or tiny-clip."}
    )
    inner: int = field(default=256, metadata={"help": "Width in which image and prompt read each other."})
    heads: int = field(default=4, metadata={"help": "Attention heads."})
    depth: int = field(default=1, metadata={"help": "Blocks in which image and prompt read each other."})
    rank: int = field(default=32, metadata={"help": "Rank of the correction of the joint space."})


@dataclass
class DataOptions:
    """What is judged, under which categories."""

    dataset: str = field(default="digits", metadata={"help": "As in recipes/lora_llava.py."})
    taxonomy: str = field(default="digits", metadata={"help": "A taxonomy that ships, or a YAML file."})
    held_out: list[str] = field(
        default_factory=list, metadata={"help": "Keys of categories that no lesson may contain."}
    )
    flip: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Any field of prompts.FlipOptions. In a YAML only."}
    )
    distill: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "Any field of judge.student.distill_data.DistillOptions. In a YAML only."},
    )
    lessons: int = field(
        default=250, metadata={"help": "Policies the teacher judges, flip.group_size rows each."}
    )
    limit: int | None = field(default=None, metadata={"help": "Use at most so many rows of each split."})
    cache: str = field(default="runs/features", metadata={"help": "Folder for the encoder's features."})
    baselines: list[str] = field(
        default_factory=list, metadata={"help": "Run folders of other heads to ask the same questions."}
    )


@dataclass
class StudentArguments(TrainingArguments):
    """transformers' own arguments; a batch is made of policies, each with `flip.group_size` rows."""

    eval_rows: int = field(
        default=400, metadata={"help": "Validation questions, in the loop and to calibrate."}
    )
    test_rows: int = field(
        default=1600, metadata={"help": "Test questions; the judge's own evaluation has 1600."}
    )

    def __post_init__(self) -> None:
        self.remove_unused_columns = False
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False
        super().__post_init__()


def main() -> None:
    """Parse the options, open the run folder, train; what stops it on the way is explained."""
    options, data, args = parse()
    run = open_run(options, data, args)
    with explain_interruption(run.path):
        distil(run, options, data, args)


def distil(run: RunDir, options: StudentOptions, data: DataOptions, args: StudentArguments) -> None:
    """Let the judge teach, train, calibrate, ask, report."""
    started = time.time()
    set_seed(args.seed)
    taxonomy = load_taxonomy(data.taxonomy)
    flip = FlipOptions(held_out=frozenset(data.held_out), **data.flip)
    train, validation, test = load_splits(data, taxonomy)
    # A student is asked about whole policies; a row about one of its categories would be another question.
    asked = replace(flip, focus=0.0)
    groups = draw_groups(train, taxonomy, asked, seed=args.seed, epoch=0, groups=data.lessons)
    in_loop = draw_evaluation(validation[::2], taxonomy, flip, seed=args.seed, rows=args.eval_rows)
    final = draw_evaluation(test, taxonomy, flip, seed=args.seed, rows=args.test_rows)

    encoder = DualEncoder.load(options.encoder, device=str(args.device))
    lessons = learn_from(options.teacher, groups, run, data, args)
    taught = time.time()
    shape = HeadConfig(encoder.width, options.inner, options.heads, options.depth, options.rank)
    head = CrossAttentionHead(shape)
    student = Student(encoder, head, name=run.path.name, default_taxonomy=taxonomy)
    parameters = sum(p.numel() for p in head.parameters())
    say(f"{parameters:,} parameters on {encoder.name} of width {encoder.width}")
    untrained = ask(student, final)

    def evaluate(_: CrossAttentionHead) -> dict[str, float]:
        """Short numbers on validation questions."""
        student.clear_cache()
        found = summarise_evaluation(in_loop, ask(student, in_loop))
        return {key: found[key] for key in SHOWN if found.get(key) is not None}

    weighed = DistillOptions(**data.distill)
    trainer = DistillTrainer(
        model=Distillation(head, weighed),
        args=args,
        train_dataset=VariedGroups(lessons, taxonomy, weighed, seed=args.seed),
        eval_dataset=in_loop.questions,
        data_collator=collator(encoder, train, lessons, data),
        evaluator=evaluate,
    )
    trainer.train(resume_from_checkpoint=resume_from(args))
    head.eval()
    student.clear_cache()
    if trainer.is_world_process_zero():
        save_student(run, student)  # whatever fails from here on, the training is kept
    calibrate_head(head, *held_out_logits(student, validation[::2], taxonomy, asked, args))
    if trainer.is_world_process_zero():
        save_student(run, student)
        answers = {"untrained": untrained, "student": ask(student, final)}
        answers["judge"] = judged(options.teacher, final)
        answers |= {Path(name).name: ask(load_classifier(name), final) for name in data.baselines}
        extra = {
            "seconds": time.time() - started,
            "seconds_teaching": taught - started,
            "parameters": parameters,
            "rows_taught": sum(len(lesson.rows) for lesson in lessons),
            "unjudged_by_teacher": int(sum(np.isnan(lesson.unsafe).sum() for lesson in lessons)),
        }
        write_results(run, final, answers, extra)
        run.write_rows("history", trainer.state.log_history)
        say(f"  {try_it(run, test)}")


SHOWN = ("f1", "safe_to_unsafe", "unsafe_to_safe", "pair_score", "category_accuracy", "auc", "heldout_f1")
"""Columns of the table, and numbers of the evaluations in the loop."""


def parse() -> tuple[StudentOptions, DataOptions, StudentArguments]:
    """Defaults, then the recipe's YAML, then that of `--config`, then the command line; unknown keys stop the run."""
    return parse_options((StudentOptions, DataOptions, StudentArguments), DEFAULT_CONFIG, sys.argv[1:])


def open_run(options: StudentOptions, data: DataOptions, args: StudentArguments) -> RunDir:
    """The run folder, made by the first process; the others wait for it."""
    state = PartialState()
    if state.is_main_process:
        for name in data.baselines:
            RunDir.open(name)  # a missing one is said now, not after the training
        taxonomy, resume = load_taxonomy(data.taxonomy), resumes(args)
        settings = {**asdict(options), **asdict(data), **args.to_dict(), "processes": args.world_size}
        if resume:
            RunDir(args.output_dir).check_resumable(taxonomy, teacher=options.teacher)
            check_options(args.output_dir, settings, checkpoint=resume_from(args))
        run = RunDir.create(args.output_dir, kind="student", resume=resume, teacher=options.teacher)
        run.write_taxonomy(taxonomy)
        run.write_environment()
        run.write_config(settings)
    state.wait_for_everyone()
    return RunDir.open(args.output_dir, kind="student")


def load_splits(data: DataOptions, taxonomy: Taxonomy) -> list[tuple[Example, ...]]:
    """Train, validation and test examples; no image in two of them."""
    splits = [
        load_examples(data.dataset, split=split, taxonomy=taxonomy, limit=data.limit)
        for split in ("train", "validation", "test")
    ]
    check_splits(*splits)
    say(", ".join(f"{len(split.examples):,} {split.name}" for split in splits))
    return [tuple(split.examples) for split in splits]


def learn_from(
    name: str, groups: Sequence[Group], run: RunDir, data: DataOptions, args: StudentArguments
) -> list[ScoredGroup]:
    """The teacher's scores of all groups, shared out over the processes, from disk where they are there already."""
    state = PartialState()
    about = {
        "teacher": teacher_identity(name),
        "dataset": data.dataset,
        "taxonomy": load_taxonomy(data.taxonomy).hash,
        "held_out": sorted(data.held_out),
        "seed": args.seed,
    }
    folder = run.path / "lessons"
    with tqdm(total=len(groups), desc="the judge teaches", disable=not state.is_main_process) as bar:
        write_teacher_scores(
            load_classifier(name, device=str(args.device)),
            groups,
            folder,
            about=about,
            process=state.process_index,
            processes=state.num_processes,
            progress=lambda done: bar.update(done - bar.n),
        )
    state.wait_for_everyone()
    return read_teacher_scores(folder, groups, about=about)


def collator(
    encoder: DualEncoder, train: Sequence[Example], lessons: Sequence[ScoredGroup], data: DataOptions
) -> DistillCollator:
    """Features of the training images and prompts, computed once and kept in the cache."""
    used = {row.example.id for lesson in lessons for row in lesson.rows}
    examples = [example for example in train if example.id in used]
    texts = sorted({row.prompt or "" for lesson in lessons for row in lesson.rows})
    return DistillCollator(
        encode_images(encoder, examples, cache=Path(data.cache)),
        [example.id for example in examples],
        encode_texts(encoder, texts, cache=Path(data.cache)),
        texts,
        PhraseEmbeddings(encoder),
    )


def ask(classifier: Any, evaluation: Evaluation) -> list[JudgedRow]:
    """A classifier's answers to all questions, in order."""
    return predict_questions(classifier, evaluation.questions)


def judged(teacher: str, final: Evaluation) -> list[JudgedRow]:
    """The judge's answers to the same questions: those its own run kept, if they are the same, else asked now."""
    kept = Path(teacher) / "rows" / "after.jsonl"
    if kept.is_file():
        rows = [JudgedRow.from_dict(row) for row in RunDir(teacher).read_rows("after")]
        same = [
            (row.id, row.truth, row.policy, row.prompt)
            == (question.id, question.row.unsafe, question.row.taxonomy.names, question.row.prompt)
            for row, question in zip(rows, final.questions, strict=False)
        ]
        if len(rows) == len(final.questions) == sum(same):
            return rows
    return ask(load_classifier(teacher), final)


def held_out_logits(
    student: Student,
    examples: Sequence[Example],
    taxonomy: Taxonomy,
    flip: FlipOptions,
    args: StudentArguments,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels (B, 1 + K) of rows that were not trained on, padded with NaN."""
    groups = draw_groups(
        examples, taxonomy, flip, seed=args.seed, epoch=1, groups=max(1, args.eval_rows // flip.group_size)
    )
    rows = [question for group in groups for question in group.rows]
    columns = 1 + max(len(group.taxonomy) for group in groups)
    logits, labels = (torch.full((len(rows), columns), float("nan")) for _ in range(2))
    place = 0
    for group in groups:
        tokens = student.encoder.encode_images([open_image(row.example.image) for row in group.rows])
        with torch.no_grad():
            whole, categories = student.logits(tokens, [row.prompt for row in group.rows], group.taxonomy)
        for number, row in enumerate(group.rows):
            known = [
                float("nan") if label is None else float(label) for label in group.taxonomy.label(row.example)
            ]
            logits[place, : 1 + len(known)] = torch.cat([whole[number, None], categories[number]])
            labels[place, : 1 + len(known)] = torch.tensor([float(row.unsafe), *known])
            place += 1
    return logits, labels


def write_results(
    run: RunDir, final: Evaluation, answers: dict[str, list[JudgedRow]], extra: dict[str, Any]
) -> None:
    """metrics.json, every judged row, and the table."""
    found = {name: summarise_evaluation(final, rows) for name, rows in answers.items()}
    place = environment()
    about = {"machine": place["machine"], "versions": place["packages"], "commit": place["git"]}
    for name, rows in answers.items():
        # Users write categories that no head was trained on: flips and held-out categories in one.
        found[name]["f1_everything"] = summarise(rows)["f1"]
    heads = [name for name in found if name not in ("student", "judge", "untrained")]
    run.write_metrics(
        {
            **found["student"],
            "judge_f1": found["judge"]["f1"],
            "judge": found["judge"],
            "untrained": found["untrained"],
            "baselines": {name: found[name]["f1_everything"] for name in heads},
            "baselines_trained_categories": {name: found[name]["f1"] for name in heads},
            "baselines_in_full": {name: found[name] for name in heads},
            **extra,
            **about,
        }
    )
    run.write_rows("test", (row.to_dict() for row in answers["student"]))
    shown = (*SHOWN, "f1_everything")
    say(f"\n{'':18}" + "".join(f"{key:>18}" for key in shown))
    for name, each in found.items():
        cells = "".join(f"{'-' if each.get(key) is None else format(each[key], '.3f'):>18}" for key in shown)
        say(f"{name:18}{cells}")
    say(f"\n{extra['seconds']:.0f} s in all, {extra['seconds_teaching']:.0f} s of them the judge's. Next:")


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
