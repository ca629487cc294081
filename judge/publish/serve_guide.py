"""`serve.md` beside a merged judge: the commands with which vLLM, SGLang and transformers serve it, and how to ask.

`transformers serve` was run with judges of this kind; of vLLM and SGLang only the formats of their requests and answers
were tested, and the options stand here as their documentation has them.
"""

from typing import Any

from prompts.taxonomy import Taxonomy
from prompts.template import render

from .markdown import code, escape

SERVED_AS = "judge"
"""The name under which the commands serve it."""
GUIDE = "serve.md"
START_TEMPLATE = "chat_template_vllm.jinja"
"""The chat template with the tokens in front that vLLM does not add, where there are any."""


def start_text(processor: Any, taxonomy: Taxonomy, template: str) -> str:
    """What the tokenizer puts in front of a rendered chat, such as `<s>`; empty where the template has it already.

    transformers adds it to the text of a chat. vLLM's chat API does not, unless the template writes it.
    """
    messages = list(render(taxonomy, template=template).messages)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokenizer = processor.tokenizer
    if tokenizer.bos_token is None or text.startswith(tokenizer.bos_token):
        return ""
    with_start, plain = tokenizer(text).input_ids, tokenizer(text, add_special_tokens=False).input_ids
    count = len(with_start) - len(plain)
    return "".join(tokenizer.convert_ids_to_tokens(with_start[: max(0, count)]))


def serve_guide(taxonomy: Taxonomy, template: str, dtype: str, *, start: str = "") -> str:
    """The text of serve.md.

    Args:
        taxonomy: that the judge was trained on.
        template: that it was trained with; a served judge has to be asked with the same.
        dtype: of its weights.
        start: what `start_text` gave.
    """
    own = [f"--chat-template {START_TEMPLATE}"] if start else []
    vllm = [
        "vllm serve .",
        f"--served-model-name {SERVED_AS}",
        "--host 127.0.0.1 --port 8000",
        f"--dtype {dtype}",
        "--max-logprobs 20",
        "--limit-mm-per-prompt '{\"image\": 1}'",
        "--generation-config vllm",
        *own,
    ]
    sglang = [
        "python -m sglang.launch_server --model-path .",
        f"--served-model-name {SERVED_AS}",
        "--host 127.0.0.1 --port 8000",
        f"--dtype {dtype}",
    ]
    ask = f"arbiter judge photo.jpg --judge http://localhost:8000/v1#{SERVED_AS} --taxonomy taxonomy.yaml"
    lines = [
        f"# Serving the judge for {escape(taxonomy.name)}",
        "",
        "Run one of these in this folder. Each answers on this machine only, on port 8000.",
        "",
        "## transformers serve",
        "",
        "For trying out and moderate load (`pip install 'transformers[serving]'`). It serves the folder under its own "
        "name, and gives no log-probabilities, so scores are 0 or 1.",
        "",
        *code(f"transformers serve . --host 127.0.0.1 --port 8000 --dtype {dtype}", "bash"),
        "",
        *code(ask.replace(f"#{SERVED_AS}", "#."), "bash"),
        "",
        "## vLLM",
        "",
        *code(" \\\n    ".join(vllm), "bash"),
        "",
        *code(ask, "bash"),
        "",
        "`--max-logprobs` has to be 20 or more: the log-probabilities of the answer become its scores. "
        "`--generation-config vllm` keeps settings of the base, such as a penalty on repetition, out of them.",
        *_start_lines(start),
        "",
        "## SGLang",
        "",
        *code(" \\\n    ".join(sglang), "bash"),
        "",
        *code(ask, "bash"),
        "",
        *_caveats(template),
    ]
    return "\n".join(lines) + "\n"


def _caveats(template: str) -> list[str]:
    served = f"http://localhost:8000/v1#{SERVED_AS}"
    asks = (
        ", which `arbiter judge` asks with."
        if template == "policy_first"
        else f'. Ask from Python: `load_classifier("{served}", template="{template}")`.'
    )
    return [
        "## Before you rely on it",
        "",
        "- vLLM and SGLang were not run with this judge. An engine, a precision or a batch of another size gives other "
        "scores: compare a few hundred labelled images, and fit thresholds for each engine (`arbiter calibrate --judge "
        f"{served} ...`).",
        "- A served judge does not know how far its lessons reached (`run.json`): under a policy far from them it "
        "answers all the same. `load_classifier` on this folder, and `arbiter serve --judge .`, leave such images "
        "unjudged.",
        f"- It was trained with the template {escape(template)}{asks}",
        "- To answer beyond this machine, put a proxy with a key in front that lets only `/v1/chat/completions` and "
        "`/v1/models` through; the engines leave other addresses open.",
    ]


def _start_lines(start: str) -> list[str]:
    if not start:
        return []
    return [
        "",
        f"`{START_TEMPLATE}` is the chat template with {escape(start)} in front, which transformers adds to a chat by "
        "itself and vLLM does not.",
    ]
