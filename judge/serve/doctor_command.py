"""`arbiter doctor`: is everything here that Arbiter needs?"""

import json

from .exit_codes import EXIT_SAFE
from .memory_command import (
    BatchOption,
    GpusOption,
    ImageTokensOption,
    MemoryQuestion,
    ModelOption,
    ModelsOption,
    OptimizerOption,
    PolicyOption,
    RankOption,
    show_memory,
    show_models,
)
from .options import JsonOption, quiet_libraries
from .terminal import Terminal

_STYLES = {"ok": "", "note": "dim", "problem": "bold red"}
_PROBLEMS = 1


def doctor(
    as_json: JsonOption = False,
    model: ModelOption = None,
    policy: PolicyOption = None,
    batch_size: BatchOption = 4,
    lora_r: RankOption = 16,
    optimizer: OptimizerOption = "adamw",
    gpus: GpusOption = 1,
    image_tokens: ImageTokensOption = None,
    models: ModelsOption = False,
) -> int:
    """Look at the installation, the machine and the runs; exit code 0: no problem, 1: some.

    Values of keys are never printed. Nothing is changed, and nothing is asked of the network. With --model it computes
    how much memory a base takes for judging, LoRA and QLoRA.
    """
    quiet_libraries()
    if models:
        show_models()
        return EXIT_SAFE
    if model is not None:
        asked = MemoryQuestion(model, policy, batch_size, lora_r, optimizer, gpus, image_tokens)
        show_memory(asked, as_json=as_json)
        return EXIT_SAFE
    return _examine(as_json)


def _examine(as_json: bool) -> int:
    from .doctor import examine

    findings = list(examine())
    problems = [one for one in findings if one.health == "problem"]
    if as_json:
        print(json.dumps({"problems": len(problems), "findings": [one.to_dict() for one in findings]}))
    else:
        terminal = Terminal()
        terminal.table(
            ("", "topic", "found", "what to do"),
            [(one.health, one.topic, one.found, one.fix) for one in findings],
            header=False,
            styles=[_STYLES[one.health] for one in findings],
        )
        terminal.notice(f"{len(problems)} problems" if len(problems) != 1 else "1 problem")
    return _PROBLEMS if problems else EXIT_SAFE
