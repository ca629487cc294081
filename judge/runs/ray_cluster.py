"""A Ray cluster (Moritz et al. 2018) to work on: one that runs already, or one of this machine that ends with the work.

What is done on it belongs to others: `judge.corpus.ray_engine` and `judge.labelling.ray_data`.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from judge.errors import ConfigError, MissingExtraError, first_line
from prompts.errors import ArbiterError


@dataclass(frozen=True)
class ClusterOptions:
    """Where workers run, and what each needs.

    Raises:
        ConfigError: a number outside its range.
    """

    address: str | None = None
    """Of a running cluster, such as `auto` or `10.0.0.1:6379`; None starts one on this machine, and ends it."""
    workers: int | None = None
    """None: as many as the cluster has room for."""
    cpus: float = 1
    """Of each worker."""
    gpus: float = 0
    """Of each worker."""
    patience: float = 3600
    """Seconds without any result, after which the work stops."""
    object_store: int | None = None
    """Bytes of shared memory of a cluster started here, at least 80 MB; None for Ray's default, 30 % of the memory."""

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("object_store", 80_000_000)):
            at_least(name, getattr(self, name), least)
        if self.cpus <= 0 or self.gpus < 0 or self.patience <= 0:
            raise ConfigError(
                f"cpus is {self.cpus}, gpus {self.gpus}, patience {self.patience}; cpus and patience are above 0."
            )

    @property
    def needed(self) -> dict[str, float]:
        """What a worker needs, as Ray names it."""
        return {name: value for name, value in (("CPU", self.cpus), ("GPU", self.gpus)) if value}


def at_least(name: str, value: float | None, least: float) -> None:
    """Check an option.

    Raises:
        ConfigError: it is given, and lower.
    """
    if value is not None and value < least:
        raise ConfigError(f"{name} is {value}; give at least {least:,}.")


@contextmanager
def ray_cluster(options: ClusterOptions, local_cpus: int | None, busy: type[ArbiterError]) -> Iterator[Any]:
    """The module `ray`, connected inside the `with` block; a connection that was there already is used, and stays.

    Args:
        options: where.
        local_cpus: how many cores a cluster started here shall count, though this machine may have fewer; None for
            those it has.
        busy: raised where Ray did not start, as on a machine that is too busy.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "This engine needs Ray: pip install 'arbiter-vision[ray]', on every machine of the cluster."
        ) from error
    if ray.is_initialized():
        yield ray
        return
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if in_main else None
    try:
        _connect(ray, options, local_cpus, busy)
        yield ray
    finally:
        ray.shutdown()
        if handler is not None:  # Ray puts its own in its place
            signal.signal(signal.SIGTERM, handler)


def _connect(ray: Any, options: ClusterOptions, local_cpus: int | None, busy: type[ArbiterError]) -> None:
    given: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if options.address is not None:
        _check_address(options.address)
        given["address"] = options.address
    else:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # Workers find modules where this process finds them.
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        given |= {
            "address": "local",
            "include_dashboard": False,
            "runtime_env": {"env_vars": {"PYTHONPATH": paths}},
            "object_store_memory": options.object_store,
        }
        if local_cpus is not None:
            given["num_cpus"] = local_cpus
    where = f"at {options.address}" if options.address else "on this machine"
    try:
        ray.init(**given)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ConfigError(f"No Ray cluster {where}: {error}") from error
    except Exception as error:  # as Ray says that its processes took longer than 30 seconds to start
        raise busy(f"Ray did not start {where}: {error} Run the same command again.") from error


def _check_address(address: str) -> None:
    """Refuse at once what Ray would try to reach for minutes."""
    if address == "auto" or "://" in address:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port) if port.isdecimal() else 0), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"No Ray cluster at {address}: {first_line(error)}. Give host and port as `ray start --head` printed them, "
            "such as 10.0.0.1:6379, or auto on a machine of the cluster."
        ) from error


def room_for(ray: Any, needed: Mapping[str, float]) -> int:
    """How many workers fit on the cluster's machines as they are now.

    Args:
        ray: connected.
        needed: by each worker, as Ray names it.

    Raises:
        ConfigError: none.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = sum(int(min(node.get(name, 0) / value for name, value in needed.items())) for node in nodes)
    if not fits:
        raise ConfigError(
            f"A worker needs {dict(needed)}, which no machine of the cluster has: "
            f"{[{name: node.get(name, 0) for name in needed} for node in nodes]}. Ask for less, or wait for machines."
        )
    return fits
