"""`arbiter doctor`: is everything here that Arbiter needs?"""

import json

from .exit_codes import EXIT_SAFE
from .options import JsonOption, quiet_libraries
from .terminal import Terminal

_STYLES = {"ok": "", "note": "dim", "problem": "bold red"}
_PROBLEMS = 1


def doctor(as_json: JsonOption = False) -> int:
    """Look at the installation, the machine and the runs; exit code 0: no problem, 1: some.

    Values of keys are never printed. Nothing is changed, and nothing is asked of the network.
    """
    quiet_libraries()
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
