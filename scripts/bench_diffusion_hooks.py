"""What watching a diffusion pipeline costs while nobody looks: the observer's hooks against a call of the denoiser.

    python scripts/bench_diffusion_hooks.py                                    # tiny-diffusion, every attention layer
    python scripts/bench_diffusion_hooks.py --pipeline org/model --device cuda --dtype float16 --batches 1
    python scripts/bench_diffusion_hooks.py --pipeline random:flux             # a random one of another class

`idle_overhead` is the largest share over the batches; at most 0.01 is promised. Every attention layer is watched, which
no detector asks for. The last line is JSON, with machine and versions.
"""

import argparse
import json
import os
from importlib.metadata import version

import torch

from eval.diffusion.hook_cost import hook_cost
from judge.diffusion.layouts import attention_layers
from judge.diffusion.pipelines import load_pipeline
from judge.runs.machine import device_name
from judge.standins.random_pipelines import random_pipeline


def main() -> None:
    """Print a line a batch, then JSON."""
    options = parse()
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    if options.pipeline.startswith("random:"):
        pipeline = random_pipeline(options.pipeline.removeprefix("random:")).to(options.device)
    else:
        pipeline = load_pipeline(options.pipeline, device=options.device, dtype=options.dtype)
    layers = list(attention_layers(pipeline))
    found = {}
    for batch in options.batches:
        cost = hook_cost(pipeline, layers, ["a street at night"] * batch, repeats=options.repeats)
        found[batch] = cost
        print(
            f"{batch} pictures: a call of the denoiser {cost['step_ms']:.2f} ms, the hooks of {len(layers)} layers "
            f"{cost['hooks_us']:.1f} us, {100 * cost['idle_overhead']:.2f} %",
            flush=True,
        )
    print(
        json.dumps(
            {
                "idle_overhead": max(cost["idle_overhead"] for cost in found.values()),
                "batches": found,
                "pipeline": options.pipeline,
                "layers": len(layers),
                "machine": device_name(options.device, options.threads),
                "load_average": {"before": load, "after": os.getloadavg()[0]},
                "versions": {name: version(name) for name in ("torch", "diffusers")},
            }
        )
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pipeline", default="tiny-diffusion", help="name, folder, or random:NAME")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    return parser.parse_args()


if __name__ == "__main__":
    main()
