"""Train what reads the free text of vision-language models: safe, unsafe or uncertain (UnsafeBench, section 3.2).

    python recipes/response_classifier.py
    python recipes/response_classifier.py --replies replies.csv --base FacebookAI/roberta-base --learning_rate 2e-5

Asked whether an image is safe, a chat model answers in sentences, refuses, or describes the image and says neither. The
paper fine-tunes RoBERTa on "several example outputs for each class"; a refusal counts as unsafe. Here the replies are
put together from phrasings of our own (`judge/rivals/reply_phrasings.yaml`), and `--replies` adds written ones: CSV or
JSON lines with `text` and `label` (safe, unsafe, uncertain, refusal). Their last tenth is held out.

`base: tiny` makes a RoBERTa of 0.2 M parameters with a tokenizer of its own; any other base is a folder or hub id of
transformers. The run holds the model in `model/`; `judge.rivals` loads the run, and `response-classifier` ships.

It reads sentence by sentence, plain verdicts by rule (`judge/rivals/closed_replies.py`), and is trained on sentences.

Measured on 3,000 replies of each of two sets of wordings that training never saw; the rules were adjusted on both:

                read right   unsafe read as safe   uncertain read as safe
    held_out         0.941                     0                    0.008
    test             0.946                     0                    0.017

With the rule for bare answers only, the model reads 0.69 of `test` right: a few hundred phrasings do not make up for a
language model that was trained on text. For real replies, tune one on replies of your own.

A run that was stopped goes on with `--resume_from_checkpoint true`, from its last `save_steps`.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import processors
from torch.optim.lr_scheduler import OneCycleLR
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    set_seed,
)

from eval.recipe import RecipeOptions, log, parse_options, progress_bar, run_recipe, write_metrics
from eval.recipe.start import begins
from judge.errors import ConfigError
from judge.rivals.labelled_replies import (
    LABELS,
    LabelledReply,
    phrased_replies,
    phrased_sentences,
    read_replies,
)
from judge.rivals.response_classifier import MODEL, REPLY, SENTENCE, ResponseClassifier
from judge.runs.checkpoint import CHECKPOINT, TrainingState
from judge.runs.files import share_files
from judge.runs.folder import RunDir
from judge.runs.resume import check_options, explain_interruption
from judge.standins.tokenizer import train_byte_bpe

CONFIG = Path(__file__).parent / "configs" / "response_classifier.yaml"
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
POSITIONS = 256
CLASSES = dict(enumerate(LABELS))


@dataclass
class ResponseOptions(RecipeOptions):
    """Replies, model and length of the training."""

    output_dir: str = field(
        default="runs/response_classifier", metadata={"help": "Run folder to write; new or empty."}
    )
    base: str = field(
        default="tiny", metadata={"help": "A folder or hub id of transformers; tiny starts from nothing."}
    )
    base_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the hub."})
    replies: str | None = field(
        default=None, metadata={"help": "Written replies: .csv or .jsonl with text and label."}
    )
    reads: str | None = field(
        default=None, metadata={"help": "At a time: sentence, or reply; by default reply with --replies."}
    )
    phrased: int = field(default=150_000, metadata={"help": "Replies from our phrasings; 0 for none."})
    vocabulary: int = field(default=900, metadata={"help": "Tokens of a tiny base."})
    width: int = field(default=64, metadata={"help": "Of a tiny base."})
    layers: int = field(default=2, metadata={"help": "Of a tiny base."})
    steps: int = field(default=2400, metadata={"help": "Batches to learn from."})
    batch: int = field(default=64, metadata={"help": "Replies in a batch."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Of AdamW, at its highest."})
    test_rows: int = field(
        default=3000, metadata={"help": "Replies of other phrasings to be measured on, of each split."}
    )
    seed: int = field(default=42, metadata={"help": "Of weights, draws and dropout."})
    save_steps: int = field(default=200, metadata={"help": "Batches after which the state is saved."})
    resume_from_checkpoint: bool = field(
        default=False, metadata={"help": "Go on with the run in output_dir from what it saved last."}
    )

    def __post_init__(self) -> None:
        self.reads = self.reads or (REPLY if self.replies else SENTENCE)
        if self.reads not in (REPLY, SENTENCE):
            raise ConfigError(f"reads is {self.reads!r}; use {REPLY} or {SENTENCE}.")
        if self.replies and self.reads == SENTENCE:
            raise ConfigError("Written replies have a label as a whole; leave reads out, or say reply.")
        if self.save_steps < 1:
            raise ConfigError(f"save_steps is {self.save_steps}; give at least one.")


OPTIONS = (ResponseOptions,)


def main() -> None:
    """Parse the options, open the run folder, train; what interrupts it is explained."""
    (options,) = parse_options(OPTIONS, CONFIG)
    written = read_replies(options.replies) if options.replies else []
    if options.resume_from_checkpoint:
        check_options(options.output_dir, asdict(options))
    run = RunDir.create(
        options.output_dir,
        kind="response_classifier",
        resume=options.resume_from_checkpoint,
        base=options.base,
    )
    begins(run)
    run.write_environment()
    run.write_config(asdict(options))
    with explain_interruption(run.path):
        teach(run, written, options)


def teach(run: RunDir, written: list[LabelledReply], options: ResponseOptions) -> None:
    """Put replies together, train, save, measure on other wordings."""
    started = time.time()
    set_seed(options.seed)
    Random(options.seed).shuffle(written)
    held_out = written[: len(written) // 10]
    phrased = phrased_sentences if options.reads == SENTENCE else phrased_replies
    replies = written[len(held_out) :] + phrased("train", options.phrased, seed=options.seed)

    model, tokenizer = build(options, replies)
    model.config.reads = options.reads
    size = sum(weight.numel() for weight in model.parameters())
    log(f"{len(replies):,} texts to learn from, read by the {options.reads}; {size:,} parameters")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    history = train(model, tokenizer, replies, options, run.path / CHECKPOINT)
    run.write_rows("history", history)
    save(model, tokenizer, run.path / MODEL)

    classifier = ResponseClassifier.load(run.path)
    metrics: dict[str, Any] = {
        split: measure(classifier, phrased_replies(split, options.test_rows, seed=options.seed))
        for split in ("held_out", "test")
    }
    if held_out:
        metrics["written"] = measure(classifier, held_out)
    for name, found in metrics.items():
        log(
            f"{name}: accuracy {found['accuracy']:.3f}; read as safe though it is not: {found['misread_as_safe']:.4f}"
        )
        for label in LABELS:
            log(f"  {label:10} " + "  ".join(f"{read} {found['read'][label][read]:5d}" for read in LABELS))
    write_metrics(run, metrics | {"seconds": time.time() - started})
    (run.path / CHECKPOINT).unlink(missing_ok=True)
    log(f"{time.time() - started:.0f} s; {run.path / 'metrics.json'}")


def build(options: ResponseOptions, replies: Sequence[LabelledReply]) -> tuple[Any, Any]:
    """The model before training, and its tokenizer."""
    if options.base != "tiny":
        common = {"revision": options.base_revision, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(options.base, **common)
        names = {"id2label": CLASSES, "label2id": {name: place for place, name in CLASSES.items()}}
        model = AutoModelForSequenceClassification.from_pretrained(
            options.base, use_safetensors=True, **names, **common
        )
        return model, tokenizer
    core = train_byte_bpe([reply.text for reply in replies], options.vocabulary, SPECIAL_TOKENS)
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=POSITIONS,
    )
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        intermediate_size=2 * options.width,
        max_position_embeddings=POSITIONS + 2,  # they begin behind the padding index
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        id2label=CLASSES,
        label2id={name: place for place, name in CLASSES.items()},
    )
    return RobertaForSequenceClassification(config), tokenizer


def train(
    model: Any, tokenizer: Any, replies: Sequence[LabelledReply], options: ResponseOptions, checkpoint: Path
) -> list[dict[str, float]]:
    """Cross-entropy on the three classes; every batch is drawn anew. Returns the loss at each saved step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.05)
    schedule = OneCycleLR(optimizer, options.learning_rate, total_steps=options.steps, pct_start=0.1)
    length = min(tokenizer.model_max_length, POSITIONS)
    state = TrainingState(checkpoint, list(model.parameters()), optimizer, schedule)
    model.train()
    history: list[dict[str, float]] = state.load().get("history", [])
    first = int(history[-1]["step"]) if history else 0
    rng = Random(options.seed)
    for _ in range(first):  # the same draws again
        rng.choices(replies, k=options.batch)
    with progress_bar("training", options.steps) as progress:
        for step in range(first, options.steps):
            drawn = rng.choices(replies, k=options.batch)
            texts = tokenizer(
                [reply.text for reply in drawn],
                truncation=True,
                max_length=length,
                padding=True,
                return_tensors="pt",
            ).to(model.device)
            wanted = torch.tensor([LABELS.index(reply.label) for reply in drawn], device=model.device)
            loss = F.cross_entropy(model(**texts).logits.float(), wanted, label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress(step + 1, loss=loss.item())
            if (step + 1) % options.save_steps == 0 or step + 1 == options.steps:
                history.append({"step": step + 1, "loss": loss.item()})
                state.save(history=history)
    return history


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """In float16, as safetensors."""
    model.eval().half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    share_files(folder)


def measure(classifier: ResponseClassifier, replies: Sequence[LabelledReply]) -> dict[str, Any]:
    """How replies are read, rules included: counts by label, accuracy, and the share wrongly read as safe."""
    read = classifier.read([reply.text for reply in replies])
    counts = {label: dict.fromkeys(LABELS, 0) for label in LABELS}
    for reply, found in zip(replies, read, strict=True):
        counts[reply.label][found.label] += 1
    others = [label for label in LABELS if label != "safe"]
    return {
        "rows": len(replies),
        "accuracy": sum(counts[label][label] for label in LABELS) / len(replies),
        "misread_as_safe": sum(counts[label]["safe"] for label in others)
        / max(1, sum(sum(counts[label].values()) for label in others)),
        "read": counts,
    }


if __name__ == "__main__":
    run_recipe(main)
