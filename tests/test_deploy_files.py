"""deploy/: container file, compose file and unit say only what pip, the command line, the server and systemd understand.

Nothing is built or started here. The container file and the compose file are read; the unit goes through systemd-analyze
where it is installed.
"""

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from fixtures_server import client_of, colour_service, listening
from typer.core import TyperCommand

from judge.serve import cli, serve_command
from judge.server.settings import ServerSettings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
KEY = "a-key-of-enough-characters"
SECRET = re.compile(r"(?i)password|secret|token|api_?key")


@pytest.fixture
def served(monkeypatch):
    """`served(words)` -> the options that `arbiter serve` reads of them, by name."""
    read = {}

    def keep(self, context):
        read.update(context.params)
        return 0

    monkeypatch.setattr(TyperCommand, "invoke", keep)

    def parse(words):
        read.clear()
        assert words[0] == "serve"
        assert cli.main(list(words)) == 0
        return dict(read)

    return parse


# --- the container file --------------------------------------------------------------------------------------


def instructions():
    """(name, rest) of each instruction, continued lines joined and comments left out."""
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.strip().split(None, 1)) for line in joined.splitlines() if line.strip()]


def stages():
    """The instructions of each stage, what stands before the first one left out."""
    found = []
    for name, rest in instructions():
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, rest))
    return found


def of(stage, name):
    return [rest for found, rest in stage if found == name]


def test_the_image_is_built_of_what_the_checkout_has():
    build, final = stages()
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[1] == "*"
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied = [rest.split()[:-1] for rest in of(build, "COPY")]
    sources = {source for words in copied for source in words}
    assert sources == sent
    assert all((ROOT / source).exists() for source in sources)
    assert of(final, "COPY") == ["--from=build /opt/arbiter /opt/arbiter"]
    # What hatchling needs: the packages of the wheel, what it forces in, and the files that the metadata names.
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    wheel = wheel["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], PROJECT["readme"], *PROJECT["license-files"]}
    assert {*needed, "pyproject.toml", "constraints.txt"} == sources


def test_pip_understands_what_it_is_told():
    from packaging.requirements import Requirement
    from pip._internal.commands import create_command

    runs = [rest for rest in of(stages()[0], "RUN") if "/pip " in rest]
    assert len(runs) == 2
    index = "${TORCH_INDEX:+--index-url ${TORCH_INDEX}}"
    assert sum(index in rest for rest in runs) == 1
    # Both as it stands, and with another index for torch.
    for rest in [run.replace(index, given) for run in runs for given in ("", "--index-url http://here")]:
        program, command, *words = shlex.split(rest)
        assert (program, command) == ("/opt/arbiter/bin/pip", "install")
        options, targets = create_command("install").parse_args(words)
        assert options.constraints == ["constraints.txt"]
        assert options.cache_dir is False
        [target] = targets
        if target == "torch":
            assert options.ignore_dependencies, (
                "its index has no other packages in the versions of constraints.txt"
            )
            assert "torch" in {Requirement(one).name for one in PROJECT["dependencies"]}
        else:
            extras = re.fullmatch(r"\.\[(.*)\]", target)
            assert set(extras[1].split(",")) == {"serve", "postgresql", "onnx"}
            assert set(extras[1].split(",")) <= PROJECT["optional-dependencies"].keys()
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^torch==", constraints, re.MULTILINE)


def test_the_image_holds_no_secret_and_no_root(served):
    build, final = stages()
    for stage in (build, final):
        for name in ("ARG", "ENV", "LABEL"):
            assert not [rest for rest in of(stage, name) if SECRET.search(rest.replace("HF_HUB_DISABLE", ""))]
    assert of(build, "FROM")[0].endswith("AS build")
    user = re.search(r"--uid (\d+)", " ".join(of(final, "RUN")))
    assert of(final, "USER") == [f"{user[1]}:{user[1]}"]
    order = [name for name, _ in final]
    assert order.index("USER") > order.index("RUN"), "nothing is installed as that user"
    assert of(final, "STOPSIGNAL") == ["SIGTERM"]
    [version] = [rest for rest in of(final, "ARG") if rest.startswith("VERSION=")]
    assert version == f"VERSION={PROJECT['version']}"
    assert json.loads(of(final, "ENTRYPOINT")[0]) == ["arbiter"]
    assert "arbiter" in PROJECT["scripts"]
    options = served(json.loads(of(final, "CMD")[0]))
    assert options["host"] == "0.0.0.0"
    assert options["no_keys"] is False, "so it refuses to listen until it is given keys"
    assert options["state"].is_relative_to(of(final, "VOLUME")[0])
    assert of(final, "EXPOSE") == [str(options["port"])]


def test_the_health_check_tells_a_living_server_from_none():
    [check] = of(stages()[1], "HEALTHCHECK")
    words = json.loads(check[check.index("[") :])
    assert words[:2] == ["python", "-c"]

    def run(address):
        code = words[2].replace("http://127.0.0.1:8080", address)
        assert code != words[2]
        # docker gives containers the proxy of its own configuration.
        proxy = os.environ | {"http_proxy": "http://127.0.0.1:1", "no_proxy": ""}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=proxy)
        return done.returncode

    with listening(colour_service(keys=(KEY,))) as address:
        assert run(address) == 0, "also without a key"
        assert run(address.replace("127.0.0.1", "127.0.0.1:1/x#")) != 0
    assert run(address) != 0


# --- the compose file ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose():
    """compose.yaml with its variables unset, as they are by default."""
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))


KNOWN = {
    *(
        "build",
        "image",
        "restart",
        "command",
        "environment",
        "secrets",
        "volumes",
        "ports",
        "networks",
        "depends_on",
    ),
    *(
        "stop_grace_period",
        "read_only",
        "tmpfs",
        "cap_drop",
        "security_opt",
        "deploy",
        "logging",
        "healthcheck",
    ),
    "shm_size",
}
"""Keys of a service that the compose specification has, of which these files need no more."""


def test_compose_names_only_what_it_declares(compose):
    assert compose.keys() <= {"name", "services", "secrets", "networks", "volumes"}
    used = {"secrets": set(), "networks": set(), "volumes": set()}
    for name, service in compose["services"].items():
        assert service.keys() <= KNOWN, name
        used["secrets"] |= set(service["secrets"])
        used["networks"] |= set(service["networks"])
        for volume in service["volumes"]:
            source, target, *mode = volume.split(":")
            assert target.startswith("/"), volume
            if not source.startswith("."):
                used["volumes"].add(source)
            elif (DEPLOY / source).suffix:
                assert (DEPLOY / source).is_file()
                assert mode == ["ro"]
        assert set(service.get("depends_on", ())) <= compose["services"].keys()
    for kind, names in used.items():
        assert names == compose[kind].keys(), kind
    for secret in compose["secrets"].values():
        assert secret["file"].startswith("secrets/")
    build = compose["services"]["server"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()


def test_compose_bounds_and_restarts_everything(compose):
    for name, service in compose["services"].items():
        assert service["restart"] == "unless-stopped", name
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["logging"]["options"]["max-size"]
        assert re.search(r":v?[\d.]+$", service["image"]) or "build" in service, (
            "a version, and not the latest one"
        )
        environment = service.get("environment", {})
        assert not [key for key in environment if SECRET.search(key) and not key.endswith("_FILE")]
    assert compose["services"]["server"]["read_only"] is True
    assert compose["services"]["server"]["cap_drop"] == ["ALL"]


def test_only_the_server_can_be_reached_and_only_from_this_machine(compose):
    services = compose["services"]
    assert {name for name, service in services.items() if "ports" in service} == {"server"}
    [port] = services["server"]["ports"]
    assert re.fullmatch(r"127\.0\.0\.1:\d+:8080", port)
    inner = {name for name, network in compose["networks"].items() if network.get("internal")}
    for name, service in services.items():
        assert name == "server" or set(service["networks"]) <= inner
    together = set(services["prometheus"]["networks"]) & set(services["database"]["networks"])
    assert not together, "who collects numbers needs no database"


def test_the_server_of_compose_is_started_with_options_that_it_has(compose, served):
    service = compose["services"]["server"]
    options = served(service["command"])
    assert options["host"] == "0.0.0.0"
    for option, secret in (
        ("api_key_file", "api_keys"),
        ("metrics_key_file", "metrics_key"),
        ("database_password_file", "database_password"),
    ):
        assert options[option] == Path("/run/secrets") / secret
        assert secret in service["secrets"]
    database = compose["services"]["database"]
    made = database["environment"]
    assert (
        options["database"] == f"postgresql+psycopg://{made['POSTGRES_USER']}@database/{made['POSTGRES_DB']}"
    )
    assert made["POSTGRES_PASSWORD_FILE"] == str(options["database_password_file"])
    assert service["depends_on"]["database"] == {"condition": "service_healthy"}
    assert database["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    assert int(service["stop_grace_period"].removesuffix("s")) >= options["drain_seconds"] + 10
    assert options["decode_workers"] == int(service["deploy"]["resources"]["limits"]["cpus"])
    state = {volume.split(":")[1] for volume in service["volumes"] if volume.startswith("state:")}
    assert options["state"].is_relative_to(state.pop())


# --- the unit ------------------------------------------------------------------------------------------------


class _Unit(configparser.RawConfigParser):
    """A unit: keys keep their case, and may come again."""

    optionxform = staticmethod(str)


def unit():
    """Key -> its last value, of the section of the service."""
    text = (DEPLOY / "arbiter.service").read_text(encoding="utf-8").replace("\\\n", " ")
    found = _Unit(strict=False, delimiters=("=",), comment_prefixes=("#",), interpolation=None)
    found.read_string(text)
    return dict(found["Service"])


def test_the_unit_starts_the_server_and_ends_it_gently(served):
    service = unit()
    program, *words = shlex.split(service["ExecStart"])
    assert Path(program).name == "arbiter"
    options = served(words)
    assert int(service["TimeoutStopSec"]) >= options["drain_seconds"] + 10
    # By default systemd would send SIGTERM to the decoders too, and every accepted image would be lost.
    assert service["KillMode"] == "mixed"
    assert service["Restart"] == "on-failure"
    text = (DEPLOY / "arbiter.service").read_text(encoding="utf-8")
    credentials = dict(re.findall(r"^LoadCredential=(\w+):(\S+)", text, re.MULTILINE))
    used = {option: Path(value).name for option, value in options.items() if str(value).startswith("%d/")}
    assert used == {
        "api_key_file": "api_keys",
        "metrics_key_file": "metrics_key",
        "database_password_file": "database_password",
    }
    assert set(used.values()) == credentials.keys()
    assert not SECRET.search(service["Environment"])
    assert str(options["state"]).startswith(f"%S/{service['StateDirectory']}/")


def test_the_unit_may_do_little():
    service = unit()
    assert service["ProtectSystem"] == "strict"
    assert service["DynamicUser"] == service["NoNewPrivileges"] == service["ProtectHome"] == "yes"
    assert service["CapabilityBoundingSet"] == ""
    assert service["MemoryMax"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_unit(tmp_path):
    """It looks for the program, so the unit gets one that is here."""
    text = (DEPLOY / "arbiter.service").read_text(encoding="utf-8")
    changed = text.replace("/opt/arbiter/bin/arbiter", "/bin/true")
    assert changed != text
    (tmp_path / "arbiter.service").write_text(changed)
    analyze = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "arbiter.service")]
    done = subprocess.run(analyze, capture_output=True, text=True, check=False)
    mistakes = [line for line in done.stderr.splitlines() if "arbiter.service" in line]
    assert not mistakes, mistakes
    (tmp_path / "arbiter.service").write_text(changed.replace("ProtectSystem=strict", "ProtectSytsem=strict"))
    done = subprocess.run(analyze, capture_output=True, text=True, check=False)
    assert "ProtectSytsem" in done.stderr, "it does see mistakes"


# --- what the files rely on ----------------------------------------------------------------------------------


def test_listening_to_others_needs_a_key(monkeypatch):
    monkeypatch.delenv("ARBITER_API_KEYS", raising=False)
    with pytest.raises(serve_command.ConfigError, match="there is no API key"):
        serve_command._keys("0.0.0.0", None, no_keys=False)


def test_a_metrics_key_opens_nothing_else():
    service = colour_service(keys=(KEY,), metrics_keys=(KEY + "-metrics",))
    assert ServerSettings().metrics_keys == ()
    with client_of(service) as client:
        for key, path, status in (
            (KEY, "/metrics", 200),
            (KEY, "/v1/server", 200),
            (KEY + "-metrics", "/metrics", 200),
            (KEY + "-metrics", "/v1/server", 401),
            (KEY + "-metrics", "/v1/nothing", 401),
            (KEY + "-other", "/metrics", 401),
        ):
            answer = client.get(path, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == status, (key, path)
        assert client.get("/metrics").status_code == 401
    with client_of(colour_service(metrics_keys=(KEY,))) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/v1/server").status_code == 200
