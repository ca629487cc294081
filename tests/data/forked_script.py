"""What a process does that conftest's `start_script` forks: it becomes the given script, as `python SCRIPT ...` would.

The names in capitals are put in by who runs this file.
"""

import gc
import os
import runpy
import sys

gc.freeze()  # what was imported stays, and need not be looked through
os.setsid()  # a group of its own, so that it is stopped with all it started
os.chdir(FOLDER)  # noqa: F821
os.environ.update(ENVIRONMENT)  # noqa: F821
for stream, path in ((1, OUTPUT), (2, ERRORS)):  # noqa: F821
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(line_buffering=True)
if deepspeed := sys.modules.get("deepspeed"):
    # It would compile an operator for inference, a minute's work, and keep it in the user's home.
    deepspeed.ops.__compatible_ops__ = {}
if COMMAND[0].endswith("accelerate_cli.py"):  # noqa: F821
    from accelerate.commands import launch

    def become(args):
        """For one process, accelerate would start another Python, which imports everything anew."""
        (_, *sys.argv), environment = launch.prepare_simple_launcher_cmd_env(args)
        os.environ.update(environment)
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")

    launch.simple_launcher = become
sys.argv = COMMAND  # noqa: F821
sys.path.insert(0, os.path.dirname(COMMAND[0]))  # noqa: F821
runpy.run_path(COMMAND[0], run_name="__main__")  # noqa: F821
