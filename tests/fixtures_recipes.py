"""Fixtures: recipes run in processes of their own, under accelerate, and in this process."""

import os

import pytest

RECIPE_OPTIONS = {
    "dataset": "digits",
    "taxonomy": "digits",
    "held_out": ["four", "eight"],
    "flip": {"group_size": 4, "max_categories": 2, "custom": 0.0, "restyle": 0.0, "reprompt": 0.0},
    "limit": 100,
    "groups_per_epoch": 48,
    "lora_r": 4,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "save_total_limit": None,
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 12,  # four steps an epoch, so six steps cross into the second
    "max_steps": 6,
    "eval_rows": 12,
    "test_rows": 12,
    "obedience_rows": 0,
    "judge_batch_size": 32,
    "logging_steps": 1,
    "save_steps": 2,
    "eval_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


@pytest.fixture(scope="session")
def recipe_config(base_folder, tmp_path_factory):
    """A YAML for recipes/lora_llava.py: six steps on a random tiny base and a few digits."""
    import yaml

    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE_OPTIONS | {"model_name_or_path": str(base_folder())}))
    return path


class Script:
    """A script in a process group of its own, forked where everything heavy is imported already."""

    def __init__(self, command, environment):
        import multiprocessing
        import runpy
        import tempfile
        from pathlib import Path

        root, self.folder = Path(__file__).resolve().parent.parent, tempfile.TemporaryDirectory()
        self.output, self.errors = (Path(self.folder.name) / name for name in ("output", "errors"))
        for file in (self.output, self.errors):  # may be read before the fork writes
            file.touch()
        given = {
            "FOLDER": str(root),
            "ENVIRONMENT": environment,
            "OUTPUT": str(self.output),
            "ERRORS": str(self.errors),
            "COMMAND": [str(root / command[0]), *map(str, command[1:])],
        }
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["torch", "transformers", "trl", "peft", "sklearn.ensemble", "matplotlib.figure", "deepspeed"]
        )
        self.process = context.Process(
            target=runpy.run_path, args=(str(root / "tests" / "data" / "forked_script.py"), given)
        )
        self.process.start()

    def wait(self):
        """Exit code, once it has ended; negative, the signal that ended it. The test's own timeout bounds it."""
        self.process.join()
        return self.process.exitcode

    @property
    def stdout(self):
        return self.output.read_text()

    @property
    def stderr(self):
        return self.errors.read_text()

    def kill(self):
        """End it and what it started."""
        import signal
        from contextlib import suppress

        if self.process.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join()
        self.folder.cleanup()


@pytest.fixture(scope="session")
def start_script():
    """`start_script(path, *options, **environment)` -> a `Script` that runs a file of the project as `python` does.

    The imports of a recipe take longer than the few steps of its test. A server process imports them once, and each
    script is a fork of it: a fresh process otherwise, with its own arguments, environment, output and exit code.
    """
    started = []

    def start(*command, **environment):
        started.append(Script(command, environment))
        return started[-1]

    yield start
    for script in started:
        script.kill()


@pytest.fixture(scope="session")
def accelerate(start_script):
    """`accelerate(profile, recipe, *options)` starts a recipe under `accelerate launch`.

    torchrun's own settings let it fork its processes and run the recipe in them.
    """
    from pathlib import Path

    from accelerate.commands import accelerate_cli

    root = Path(__file__).resolve().parent.parent

    def start(profile, recipe, *options):
        config = root / "recipes" / "configs" / "accelerate" / f"{profile}.yaml"
        command = ["launch", "--config_file", config, "--main_process_port", "0", root / recipe, *options]
        return start_script(accelerate_cli.__file__, *command, PET_RUN_PATH="1", PET_START_METHOD="fork")

    return start


@pytest.fixture(scope="session")
def launch(accelerate, recipe_config):
    """`launch(out, *options, profile="single")` runs recipes/lora_llava.py; gives the ended `Script`."""

    def run(out, *options, profile="single"):
        options = ["--config", recipe_config, "--output_dir", out, *options]
        script = accelerate(profile, "recipes/lora_llava.py", *options)
        if script.wait():
            pytest.fail((script.stdout + script.stderr)[-4000:])
        return script

    return run


SHORT_RUN = {"limit": 60, "groups_per_epoch": 8, "per_device_train_batch_size": 4, "max_steps": 3}
SHORT_RUN |= {"eval_rows": 4, "test_rows": 8, "save_strategy": "no", "use_cpu": True, "held_out": ["four"]}


@pytest.fixture
def quick_recipe(monkeypatch):
    """recipes/lora_llava.py without its check of the rows and its report: neither depends on the base or the training."""
    from types import SimpleNamespace

    found = SimpleNamespace(auc=0.5, image_auc=0.5, metrics={}, to_dict=dict)
    monkeypatch.setattr("eval.shortcut.check.check_rows", lambda *_, **__: found)
    monkeypatch.setattr("eval.reports.run_report.write_run_report", lambda *_, **__: None)


@pytest.fixture
def train_here(quick_recipe, recipe_config, tmp_path, monkeypatch):
    """`train_here(base, name="run", **options)` runs three steps of recipes/lora_llava.py in this process.

    Gives back the run's `path`, and by name what it `asked`: (evaluation, judged rows). With another run's, as
    `known`, it asks nothing itself.
    """
    import importlib.util
    import sys
    from pathlib import Path
    from types import SimpleNamespace

    import yaml

    def run(base, name="run", known=None, **options):
        config, path = tmp_path / f"{name}.yaml", tmp_path / name
        given = yaml.safe_load(recipe_config.read_text()) | SHORT_RUN | {"model_name_or_path": str(base)}
        config.write_text(yaml.safe_dump(given | options))
        arguments = ["--config", str(config), "--output_dir", str(path)]
        monkeypatch.setattr(sys, "argv", ["lora_llava.py", *arguments])
        file = Path(__file__).resolve().parent.parent / "recipes" / "lora_llava.py"
        spec = importlib.util.spec_from_file_location("lora_llava", file)
        recipe = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "lora_llava", recipe)  # its arguments are pickled beside the adapter
        spec.loader.exec_module(recipe)
        predict, asked = recipe.predict_distributed, {}

        def recorded(judge, evaluation, name=""):
            asked[name] = known[name] if known else (evaluation, predict(judge, evaluation, name))
            return asked[name][1]

        recipe.predict_distributed = recorded
        recipe.main()
        return SimpleNamespace(path=path, asked=asked)

    return run


@pytest.fixture(scope="session")
def single_run(launch, tmp_path_factory):
    """The folder of an uninterrupted run in one process."""
    out = tmp_path_factory.mktemp("runs") / "single"
    launch(out, "--obedience_rows", "8")
    return out


@pytest.fixture(scope="module")
def timed_once():
    """What `eval.costs` measures, it measures once and not five times: tests of recipes read no times."""
    from eval import costs

    measure = costs.time_in_turns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            costs, "time_in_turns", lambda functions, **_: measure(functions, repeats=1, warm_up=False)
        )
        yield


@pytest.fixture(scope="session")
def step_losses():
    """`step_losses(run)` -> loss by step, unrounded."""
    import json

    def read(run):
        lines = [json.loads(line) for line in (run / "rows" / "history.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    return read
