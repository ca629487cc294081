"""UnsafeBench's linear probes: a small MLP per category on a frozen encoder's image embedding.

    accelerate launch recipes/linear_probe.py

As in the paper (CCS 2025, section A.5): MLPs of D - D/2 - 2 (768-384-2 for CLIP ViT-L/14), Adam 2e-4, batches of 128,
30 epochs, one MLP a category, all of them in one batched product. An image that is unsafe in another category counts as
safe. `--teacher judge` learns from a judge's probabilities instead of labels.

With no options: digits, tiny-clip, two digits held out. On one CPU core it takes about 15 seconds, leaves
`runs/linear_probe` and prints F1 on the judge's own test questions: 0.99 with categories mapped to heads by what they
mean (the kindest reading: a person told the system which heads make up a "house list"), 0.86 by their names alone, and
0.06 on held-out categories, which it can only leave unjudged.

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
from judge.baselines.linear_probe import LinearProbe, ParallelMLP, save_linear_probe
from judge.encoders.dual import DualEncoder
from judge.encoders.features import encode_images
from prompts import load_taxonomy
from prompts.errors import ArbiterError
from prompts.printable import error_line, printable_lines

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "linear_probe.yaml"


def main() -> None:
    """Parse, load, encode once, train, ask, save."""
    started = time.time()
    data, options = parse()
    state = PartialState(cpu=not torch.cuda.is_available())
    set_seed(options.seed)
    run = open_run(LinearProbe.kind, data, options)
    taxonomy = load_taxonomy(data.taxonomy)
    trained = data.trained(taxonomy)
    examples, test = load_splits(data, taxonomy, run)
    questions = draw_evaluation(test.examples, taxonomy, data.flips, seed=options.seed, rows=data.test_rows)

    encoder = DualEncoder.load(
        data.encoder, revision=data.encoder_revision, device=state.device, dtype=data.encoder_dtype
    )
    cache = Path(data.cache) if data.cache else None
    images = encode_images(encoder, examples, cache=cache, progress=state.is_main_process).pooled
    with bar("asking the judge", len(examples)) as asked:
        targets = find_targets(data, examples, trained, progress=partial(move, asked))
    say(f"{len(examples):,} training images, {len(trained)} categories, {len(test.examples):,} test images")

    set_seed(options.seed)
    head = ParallelMLP(encoder.width, len(trained))
    with bar("epochs", options.epochs) as done:
        history = fit(head, [images], targets.categories, options, progress=partial(move, done))
    classifier = LinearProbe(encoder, head, trained, name=run.path.name)
    if state.is_main_process:
        save_linear_probe(run, classifier)
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
