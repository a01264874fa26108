"""A throwaway RabbitMQ node: its own data, ports, cookie and port mapper, all on the loopback.

NUROPB_TEST_RABBITMQ_ROOT selects the RabbitMQ of another root directory, which ``tests.servers.debian`` makes, and
NUROPB_TEST_RABBITMQ_SETTINGS adds lines to rabbitmq.conf, separated by semicolons.

Only the standard library is used, so that ``provision`` and the unit tests can import it anywhere.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

from tests.servers.debian import command_in

__all__ = ["RabbitMQError", "RabbitMQNode", "answers_amqp", "find_program", "free_port"]

#: Seconds. A boot takes about 6 s of CPU, and a machine may have other things to do.
BOOT_TIMEOUT = 180.0
CTL_TIMEOUT = 180.0
#: rabbitmqctl's words for a node without a running broker.
NOT_RUNNING = "requires the 'rabbit' app to be running"
#: rabbitmqctl's words for a process of the broker that ends as it is asked, and how often a list is tried.
HAS_ENDED = "{:noproc,"
LIST_ATTEMPTS = 5

# Waits for its standard input to close, which happens at any end of this process, even by SIGKILL. Then it removes all
# processes and files of the node.
GUARD = """
cat > /dev/null
for file in "$1"/*.pid; do
    [ -e "$file" ] && kill -s KILL -- "-$(cat "$file")" 2> /dev/null
done
rm -rf -- "$1" 2> /dev/null || { sleep 1; rm -rf -- "$1"; }
"""


class RabbitMQError(RuntimeError):
    """A node that did not start, or a control command that failed; the message has the end of its output."""


def find_program(name: str) -> str | None:
    """Find one of RabbitMQ's programs; return its path, or None.

    Debian's own directory comes first: its commands on the PATH change to the user ``rabbitmq`` when root calls them.
    """
    direct = Path("/usr/lib/rabbitmq/bin", name)
    if root := os.environ.get("NUROPB_TEST_RABBITMQ_ROOT"):
        inside = (direct, Path("/usr/bin", name))
        return next((str(path) for path in inside if Path(root, path.relative_to("/")).exists()), None)
    return str(direct) if direct.exists() else shutil.which(name)


def command(program: str) -> tuple[str, ...]:
    """Make the command that runs a program which ``find_program`` found."""
    root = os.environ.get("NUROPB_TEST_RABBITMQ_ROOT")
    return command_in(root, program) if root else (program,)


def common_settings() -> list[str]:
    """Return the lines of rabbitmq.conf that NUROPB_TEST_RABBITMQ_SETTINGS has for every node."""
    return [line.strip() for line in os.environ.get("NUROPB_TEST_RABBITMQ_SETTINGS", "").split(";") if line.strip()]


def free_port() -> int:
    """Find a port of the loopback without a listener, which the system does not hand out by itself.

    Below the ephemeral range, because a client that tries again and again to reach a stopped broker could
    otherwise be given the broker's own port as its source, and so connect to itself.
    """
    for _ in range(100):
        port = 10_000 + secrets.randbelow(22_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RabbitMQError("no free port between 10000 and 32000")


def answers_amqp(url: str, timeout: float = 1.0) -> bool:
    """Return whether an AMQP 0-9-1 broker answers there; with amqps, whether anything accepts the connection."""
    parts = urlsplit(url)
    tls = parts.scheme == "amqps"
    address = (parts.hostname or "localhost", parts.port or (5671 if tls else 5672))
    try:
        with socket.create_connection(address, timeout) as connection:
            if tls:
                return True
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            # A method frame on channel 0; a server of another version sends its own header and closes the
            # connection.
            return connection.recv(3) == b"\x01\x00\x00"
    except OSError:
        return False


def config_text(port: int, settings: Sequence[str] = ()) -> str:
    """Make the node's rabbitmq.conf. The low disk limit keeps a small disk from blocking every publisher."""
    own = (f"listeners.tcp.1 = 127.0.0.1:{port}", "disk_free_limit.absolute = 1MB", "log.file.level = warning")
    return "".join(f"{line}\n" for line in (*own, *settings))


def plugins_text(plugins: Sequence[str]) -> str:
    """Make the node's list of plugins, a term of Erlang."""
    return f"[{','.join(plugins)}].\n"


def node_environment(directory: Path, *, name: str, amqp: int, distribution: int, port_mapper: int) -> dict[str, str]:
    """Make the environment in which server and rabbitmqctl find each other, and nothing of the machine's own broker."""
    # Erlang would start a port mapper of its own, as a daemon which outlives the node, if ours were not there
    # yet.
    erlang = "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}"
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": str(directory),
        "ERL_EPMD_PORT": str(port_mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        # "localhost" resolves everywhere, a machine's own name does not.
        "RABBITMQ_NODENAME": name,
        "RABBITMQ_NODE_PORT": str(amqp),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(directory / "data"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
        "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"+S 1:1 {erlang}",
        "RABBITMQ_CTL_ERL_ARGS": erlang,
        # The start script replaces itself by the server then, instead of staying as its parent.
        "RUNNING_UNDER_SYSTEMD": "true",
    }


def erlang_call(command: Sequence[str]) -> str | None:
    """Return the call in Erlang that a command of rabbitmqctl makes in the node, or None for one that is not known."""
    words, vhost = list(command), "/"
    for option in ("--vhost", "-p"):
        if option in words:
            at = words.index(option)
            vhost = words[at + 1]
            del words[at : at + 2]
    match words:
        case ["add_vhost" | "delete_vhost" as name, _]:
            function, arguments = f"rabbit_vhost:{name.removesuffix('_vhost')}", words[1:]
        case (
            ["add_user", _, _]
            | ["delete_user", _]
            | ["change_password", _, _]
            | ["set_user_limits", _, _]
            | ["clear_user_limits", _, _]
        ):
            function, arguments = f"rabbit_auth_backend_internal:{words[0]}", words[1:]
        case ["set_vhost_limits", limits]:
            function, arguments = "rabbit_vhost_limit:parse_set", [vhost, limits]
        case ["clear_vhost_limits"]:
            function, arguments = "rabbit_vhost_limit:clear", [vhost]
        case ["stop_app" | "start_app" as name]:
            return f"rabbit:{name.removesuffix('_app')}()"
        case (
            ["set_permissions", user, *more]
            | ["set_topic_permissions", user, *more]
            | ["clear_permissions", user, *more]
        ):
            function, arguments = f"rabbit_auth_backend_internal:{words[0]}", [user, vhost, *more]
        case _:
            return None
    binaries = (f"<<{','.join(map(str, each.encode()))}>>" for each in (*arguments, "tests"))
    return f"{function}({', '.join(binaries)})"


def table(value: Any) -> dict[str, Any]:
    """Read an AMQP table, which rabbitmqctl prints as a list of name, type and value."""
    if isinstance(value, dict):  # by some versions, when it is empty
        return value
    return {name: table(item) if kind == "table" else item for name, kind, item in value}


class RabbitMQNode:
    """One node, for a ``with`` block or from ``start`` to ``stop``.

    It keeps its data and its ports over ``kill`` and ``start``. A boot takes about 6 s, and most calls of
    ``ctl``, and of methods built on it, 0.6 to 2 s: a test that needs speed asks over AMQP. Everything here blocks the
    thread.
    """

    def __init__(
        self,
        *,
        plugins: Sequence[str] = (),
        settings: Sequence[str] = (),
        name: str = "",
        arguments: str = "",
        like: RabbitMQNode | None = None,
    ) -> None:
        """``plugins`` are enabled. ``settings`` are further lines of rabbitmq.conf; they have to restrict the plugins'
        listeners, which by default listen on every address of the machine. ``name`` is that of a node in a cluster, and
        ``arguments`` are for Erlang. A node ``like`` another one shares its port mapper and its cookie; it has to start
        later, and to end earlier."""
        server, ctl, epmd = find_program("rabbitmq-server"), find_program("rabbitmqctl"), find_program("epmd")
        if server is None or ctl is None or epmd is None:
            raise RabbitMQError("rabbitmq-server, with its rabbitmqctl and Erlang's epmd, is not installed")
        self._server, self._ctl, self._epmd = command(server), command(ctl), command(epmd)
        self._plugins = tuple(plugins)
        self._settings = (*common_settings(), *settings)
        self.port = free_port()
        #: Random by default.
        self.name = name or f"rabbit-{secrets.token_hex(4)}@localhost"
        self._arguments = arguments
        self._like = like
        self._epmd_port: int = free_port() if like is None else like._epmd_port
        self._cookie: str = secrets.token_hex(16) if like is None else like._cookie
        self._directory: Path | None = None
        self._environment: dict[str, str] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._app_stopped = False

    @classmethod
    def at(cls, description: Mapping[str, Any]) -> Self:
        """Make another process's node from its ``description``, to ask and change it; that process ends it."""
        node = cls(name=description["name"])
        node.port, node._cookie = description["port"], description["cookie"]
        node._directory, node._environment = Path(description["directory"]), description["environment"]
        return node

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def url(self, vhost: str = "/") -> str:
        """The AMQP URL of a vhost of this node, with the default user."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    @property
    def description(self) -> dict[str, Any]:
        """What another process needs for ``at``, as JSON can have it."""
        about = {"name": self.name, "port": self.port, "cookie": self._cookie}
        return about | {"directory": str(self._directory), "environment": self._environment}

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._processes["server"].pid

    @property
    def running(self) -> bool:
        """Whether the server runs, or stands still."""
        return "server" in self._processes

    @property
    def app_stopped(self) -> bool:
        """Whether the broker is closed by :meth:`stop_app`, in a server that runs."""
        return self.running and self._app_stopped

    def start(self) -> None:
        """Boot, or boot again after ``kill``, and wait until AMQP is answered."""
        self.prepare()
        if "server" in self._processes:
            raise RabbitMQError("the node is running already")
        try:
            self._launch("server", *self._server)
            self._app_stopped = False
            self._wait_for_amqp()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the node for good and remove every trace of it. May be called twice."""
        for name in reversed(list(self._processes)):
            self._end(name)
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait()
        self._guard = None
        self._directory = None
        atexit.unregister(self.stop)

    def kill(self) -> None:
        """End the server with SIGKILL: without a goodbye to clients, and without writing anything more to the disk."""
        self._end("server")

    def freeze(self) -> None:
        """Stop the server's process: its connections stay open, without an answer."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the server go on after ``freeze``."""
        os.killpg(self.pid, signal.SIGCONT)

    def stop_app(self) -> None:
        """Close the broker in good order, with a goodbye to its clients, and close its port."""
        self.ctl("stop_app")
        self._app_stopped = True

    def start_app(self) -> None:
        """Open the broker again after ``stop_app``."""
        self.ctl("start_app")
        self._app_stopped = False
        self._wait_for_amqp()

    def add_vhost(self, name: str) -> str:
        """Make a vhost which the default user may use, and return its URL."""
        self.ctl("add_vhost", name)
        self.ctl("set_permissions", "--vhost", name, "guest", ".*", ".*", ".*")
        return self.url(name)

    def delete_vhost(self, name: str) -> None:
        """Remove a vhost with all its queues and exchanges; the broker closes its connections."""
        self.ctl("delete_vhost", name)

    def list_queues(self, vhost: str = "/") -> list[dict[str, Any]]:
        """The queues: name, messages, consumers, durable, auto_delete, exclusive and arguments."""
        columns = ("name", "messages", "consumers", "durable", "auto_delete", "exclusive", "arguments")
        return self._list("list_queues", "--vhost", vhost, columns=columns)

    def list_bindings(self, vhost: str = "/") -> list[dict[str, Any]]:
        """The bindings: source_name, destination_name, destination_kind and routing_key."""
        columns = ("source_name", "destination_name", "destination_kind", "routing_key")
        return self._list("list_bindings", "--vhost", vhost, columns=columns)

    def list_connections(self) -> list[dict[str, Any]]:
        """The connections: name, vhost, user, state, channels, timeout (the heartbeat), client_properties, send_oct.

        The last is the number of bytes that the broker has sent on it so far.
        """
        columns = ("name", "vhost", "user", "state", "channels", "timeout", "client_properties", "send_oct")
        return self._list("list_connections", columns=columns)

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl against this node and return its output.

        What :func:`erlang_call` knows goes to the node directly, as rabbitmqctl needs a second of CPU for each command;
        rabbitmqctl then finds the words for what failed.
        """
        call = erlang_call(arguments)
        if call is not None and self._succeeds(call):
            return ""
        run = self._run_ctl(*arguments)
        if run.returncode != 0 and NOT_RUNNING in run.stderr and not self._app_stopped:
            # AMQP is answered a moment before the node counts as started.
            self._run_ctl("await_startup", "--timeout", f"{BOOT_TIMEOUT:.0f}")
            run = self._run_ctl(*arguments)
        if run.returncode != 0:
            raise RabbitMQError(f"rabbitmqctl {' '.join(arguments)} ended with {run.returncode}: {run.stderr}")
        return run.stdout

    def count(self, vhost: str) -> tuple[int, int]:
        """Return the numbers of queues and of bindings in a vhost, without a question to any queue."""
        name = f"<<{','.join(map(str, vhost.encode()))}>>"
        results = self._evaluate(f"{{length(rabbit_amqqueue:list({name})), length(rabbit_binding:list({name}))}}")
        queues, bindings = re.findall(r"\d+", results)
        return int(queues), int(bindings)

    def _succeeds(self, call: str) -> bool:
        """Have the node evaluate a call; return whether its result is ``ok``."""
        return self._evaluate(call) == "{ok, ok}"

    def _evaluate(self, call: str) -> str:
        """Have the node evaluate a call, and return its result as a term of Erlang; empty without the program."""
        program = find_program("erl_call")
        if program is None or self._directory is None:
            return ""
        run = subprocess.run(
            [*command(program), "-sname", self.name, "-c", self._cookie, "-e"],
            input=f"{call}.\n",
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=CTL_TIMEOUT,
            check=False,
        )
        return run.stdout.strip()

    def _run_ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        if self._directory is None:
            raise RabbitMQError("the node has not been started")
        return subprocess.run(
            [*self._ctl, "--quiet", *arguments],
            env=self._environment,
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CTL_TIMEOUT,
            check=False,
        )

    def _list(self, command: str, *options: str, columns: Sequence[str]) -> list[dict[str, Any]]:
        for attempt in range(LIST_ATTEMPTS):
            try:
                listed = self.ctl(command, *options, "--formatter", "json", *columns)
                break
            except RabbitMQError as error:  # a queue or a channel, of any vhost, may end while it is asked
                if HAS_ENDED not in str(error) or attempt + 1 == LIST_ATTEMPTS:
                    raise
        rows: list[dict[str, Any]] = json.loads(listed)
        tables = {"arguments", "client_properties"}
        return [{name: table(row[name]) if name in tables else row[name] for name in columns} for row in rows]

    def prepare(self) -> None:
        """Make everything that lasts as long as the node, over all its starts; ``start`` does so by itself."""
        if self._directory is not None:
            return
        directory = self._directory = Path(tempfile.mkdtemp(prefix="rabbitmq-test-"))
        atexit.register(self.stop)
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._environment = node_environment(
            directory, name=self.name, amqp=self.port, distribution=free_port(), port_mapper=self._epmd_port
        )
        self._environment["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"] += f" {self._arguments}"
        (directory / "rabbitmq.conf").write_text(config_text(self.port, self._settings))
        (directory / "rabbitmq-env.conf").touch()
        (directory / "enabled_plugins").write_text(plugins_text(self._plugins))
        cookie = directory / ".erlang.cookie"
        cookie.write_text(self._cookie)
        cookie.chmod(0o400)  # Erlang refuses others
        if self._like is not None:
            return
        try:
            self._launch("epmd", *self._epmd, "-port", str(self._epmd_port))
            self._wait(self._epmd_answers, "epmd")
        except BaseException:
            self.stop()
            raise

    def _launch(self, name: str, *command: str) -> None:
        assert self._directory is not None
        with (self._directory / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(
                command,
                env=self._environment,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._processes[name] = process
        (self._directory / f"{name}.pid").write_text(str(process.pid))

    def _end(self, name: str) -> None:
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert self._directory is not None
        (self._directory / f"{name}.pid").unlink(missing_ok=True)

    def _epmd_answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._epmd_port), 1):
            return True
        return False

    def _wait_for_amqp(self) -> None:
        self._wait(lambda: answers_amqp(self.url()), "server")

    def _wait(self, ready: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + BOOT_TIMEOUT
        while not ready():
            ended = self._processes[name].poll()
            if ended is not None or time.monotonic() > deadline:
                what = f"ended with {ended}" if ended is not None else f"did not answer in {BOOT_TIMEOUT:.0f} s"
                raise RabbitMQError(f"RabbitMQ's {name} {what}; the end of its log:\n{self._log_tail()}")
            time.sleep(0.05)

    def _log_tail(self, size: int = 3000) -> str:
        assert self._directory is not None
        files = [*sorted(self._directory.glob("*.out")), *sorted(self._directory.glob("log/*.log"))]
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-size:]}" for file in files)
