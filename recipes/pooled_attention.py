"""The published multimodal defense (arXiv 2504.11707), whose text input has no effect, as a row to compare with.

    accelerate launch recipes/pooled_attention.py

The released code attends from one pooled text vector to one pooled image vector; with a single key the softmax is 1, so
only the image counts. It says "unsafe" when any training category is violated, whatever the policy. Here the encoder
stays frozen; the original trains all of CLIP ViT-B/32 with the head. `recipes/configs/pooled_attention_published.yaml`
has its settings (SGD 1e-3, momentum 0.2, weight decay 1e-3, 10 epochs). On frozen features they stop early (loss 0.23
against 0.001), so the default is Adam 1e-3 for 30 epochs.

With no options: digits, tiny-clip, two digits held out. On one CPU core it takes about 10 seconds, leaves
`runs/pooled_attention` and prints F1 on the judge's own test questions: 0.71, and 0.73 on held-out categories,
as it flags almost everything; it gets no flip from unsafe to safe. With the published settings: 0.71 and 0.62.

Every option can stand in the YAML, and all but `flip` on the command line; `--help` lists them; an unknown one stops
the run.
"""

import sys
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import set_seed

from eval.fixed_heads import HeadOptions, find_targets, load_splits, measure, open_run, write_results
from eval.options import parse_options
from eval.questions import draw_evaluation
from judge.baselines.fit import FitOptions, fit
from judge.baselines.pooled_attention import PooledAttention, PooledAttentionHead, save_pooled_attention
from judge.encoders.dual import DualEncoder
from judge.encoders.features import encode_images, encode_texts
from prompts import load_taxonomy
from prompts.errors import ArbiterError
from prompts.printable import error_line, printable_lines

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "pooled_attention.yaml"


def main() -> None:
    """Parse, load, encode once, train, ask, save."""
    started = time.time()
    data, options = parse()
    state = PartialState(cpu=not torch.cuda.is_available())
    set_seed(options.seed)
    run = open_run(PooledAttention.kind, data, options)
    taxonomy = load_taxonomy(data.taxonomy)
    trained = data.trained(taxonomy)
    examples, test = load_splits(data, taxonomy, run)
    questions = draw_evaluation(test.examples, taxonomy, data.flips, seed=options.seed, rows=data.test_rows)

    encoder = DualEncoder.load(
        data.encoder, revision=data.encoder_revision, device=state.device, dtype=data.encoder_dtype
    )
    cache = Path(data.cache) if data.cache else None
    images = encode_images(encoder, examples, cache=cache, progress=state.is_main_process).pooled
    prompts = [example.prompt or "" for example in examples]
    texts = encode_texts(encoder, prompts, cache=cache, progress=state.is_main_process).pooled
    with bar("asking the judge", len(examples)) as asked:
        targets = find_targets(data, examples, trained, progress=partial(move, asked))
    say(f"{len(examples):,} training images, {len(trained)} categories, {len(test.examples):,} test images")

    set_seed(options.seed)
    head = PooledAttentionHead(encoder.width)
    with bar("epochs", options.epochs) as done:
        history = fit(head, [images, texts], targets.unsafe[:, None], options, progress=partial(move, done))
    classifier = PooledAttention(encoder, head, trained, name=run.path.name)
    if state.is_main_process:
        save_pooled_attention(run, classifier)
    found = measure(classifier, questions, data.threshold)
    if state.is_main_process:
        say(write_results(run, classifier, found, history, started))


def parse() -> tuple[HeadOptions, FitOptions]:
    """Defaults, then the recipe's YAML, then that of `--config`, then the command line; unknown keys stop the run."""
    return parse_options((HeadOptions, FitOptions), DEFAULT_CONFIG, sys.argv[1:])


def bar(what: str, total: int) -> tqdm:
    """A progress bar, shown once, not once a process; nothing where nothing moves it."""
    return tqdm(total=total, desc=what, disable=not PartialState().is_main_process, delay=1)


def move(shown: tqdm, done: int) -> None:
    """Set a bar to what is done."""
    shown.update(done - shown.n)


def say(text: str) -> None:
    """Print once, not once a process."""
    if PartialState().is_main_process:
        print(printable_lines(text), flush=True)


if __name__ == "__main__":
    try:
        main()
    except ArbiterError as error:
        raise SystemExit(f"error: {error_line(error)}") from None
