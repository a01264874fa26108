"""The parts of tests/servers that need nothing installed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import STOPPING
from tests.servers import openid, provision
from tests.servers.debian import ENTER
from tests.servers.rabbitmq import (
    answers_amqp,
    command,
    common_settings,
    config_text,
    erlang_call,
    find_program,
    free_port,
    node_environment,
    plugins_text,
    table,
)


@contextmanager
def server_that_says(answer: bytes) -> Iterator[int]:
    """Takes one connection, reads a little, answers and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(b"\x01\x00\x00\x00\x00\x01\xff\x00\x0a\x00\x0a", True, id="connection.start"),
        pytest.param(b"AMQP\x03\x01\x00\x00", False, id="another version"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", False, id="no broker"),
        pytest.param(b"", False, id="hangs up"),
    ],
)
def test_a_broker_is_known_by_its_first_frame(answer: bytes, expected: bool) -> None:
    with server_that_says(answer) as port:
        assert answers_amqp(f"amqp://guest:guest@127.0.0.1:{port}/mesh", timeout=5) is expected


def test_nobody_there_is_no_broker() -> None:
    assert not answers_amqp(f"amqp://127.0.0.1:{free_port()}/")
    assert not answers_amqp(f"amqps://127.0.0.1:{free_port()}/")


def test_a_port_is_free_and_not_one_that_the_system_hands_out() -> None:
    port = free_port()
    assert 10_000 <= port < 32_768
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_node_listens_on_the_loopback_only(tmp_path: Path) -> None:
    environment = node_environment(tmp_path, name="rabbit@localhost", amqp=1, distribution=2, port_mapper=3)
    assert "listeners.tcp.1 = 127.0.0.1:1\n" in config_text(1)
    assert environment["ERL_EPMD_ADDRESS"] == "127.0.0.1"
    assert "inet_dist_use_interface {127,0,0,1}" in environment["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]


def test_a_node_has_the_plugins_and_settings_that_it_is_given_and_no_others() -> None:
    assert plugins_text([]) == "[].\n"
    assert plugins_text(["one", "two"]) == "[one,two].\n"
    assert config_text(1, ["a = 1", "b = 2"]) == f"{config_text(1)}a = 1\nb = 2\n"


def test_a_node_takes_nothing_from_the_users_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_NODENAME", "production")
    monkeypatch.setenv("RABBITMQ_USE_LONGNAME", "true")
    environment = node_environment(tmp_path, name="rabbit@localhost", amqp=1, distribution=2, port_mapper=3)
    assert environment["RABBITMQ_NODENAME"] == "rabbit@localhost"
    assert "RABBITMQ_USE_LONGNAME" not in environment


def test_a_table_of_rabbitmqctl_is_a_dict() -> None:
    capabilities = ["capabilities", "table", [["basic.nack", "bool", True]]]
    assert table([["x-expires", "signedint", 60000], capabilities]) == {
        "x-expires": 60000,
        "capabilities": {"basic.nack": True},
    }
    assert table([]) == table({}) == {}


class TestProvisionOfRabbitMQ:
    @pytest.fixture(autouse=True)
    def bare_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NUROPB_TEST_AMQP_URL", raising=False)
        monkeypatch.delenv("CI", raising=False)
        monkeypatch.setattr(provision, "installed", lambda: False)
        monkeypatch.setattr(provision, "find_tool", lambda name: None)
        monkeypatch.setattr(shutil, "which", lambda name: None)

    def test_a_broker_that_answers_is_used(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with server_that_says(b"\x01\x00\x00") as port:
            monkeypatch.setenv("NUROPB_TEST_AMQP_URL", f"amqp://user:hunter2@127.0.0.1:{port}/")
            assert provision.provide_programs(tools=False) == 0
        output = capsys.readouterr().out
        assert f"127.0.0.1:{port}" in output
        assert "hunter2" not in output

    def test_an_installed_server_is_enough(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("NUROPB_TEST_AMQP_URL", f"amqp://127.0.0.1:{free_port()}/")
        monkeypatch.setattr(provision, "installed", lambda: True)
        assert provision.provide_programs(tools=False) == 0
        assert capsys.readouterr().err == ""

    def test_what_to_install_is_said_in_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert provision.provide_programs() == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "install rabbitmq-server nginx haproxy prometheus" in line
        assert "NUROPB_TEST_AMQP_URL" in line

    @pytest.mark.parametrize(("variables", "status"), [({}, 0), ({"CI": "1"}, 1)])
    def test_without_tools_there_is_enough_left_to_test_unless_nothing_may_be_skipped(
        self,
        variables: dict[str, str],
        status: int,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(provision, "installed", lambda: True)
        assert provision.provide_programs() == status
        (line,) = capsys.readouterr().err.splitlines()
        assert "install nginx haproxy prometheus" in line

    @pytest.mark.parametrize(("output", "status"), [(None, 0), ("E: Unable to locate package", 1)])
    def test_root_on_debian_installs_it(
        self,
        output: str | None,
        status: int,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        asked: list[list[str]] = []

        def install(packages: list[str]) -> str | None:
            asked.append(packages)
            return output

        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(provision, "install", install)
        assert provision.provide_programs() == status
        assert asked == [["rabbitmq-server", "nginx", "haproxy", "prometheus"]]
        assert (output or "") in capsys.readouterr().err

    def test_nothing_is_started_by_what_is_installed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        policy = tmp_path / "policy-rc.d"
        monkeypatch.setattr(provision, "POLICY", policy)
        with provision.no_daemons():
            assert subprocess.run([policy], check=False).returncode == 101
        assert not policy.exists()
        policy.write_text("another's")
        with provision.no_daemons():
            assert policy.read_text() == "another's"
        assert policy.read_text() == "another's"


class TestProvisionOfTheOpenIDProvider:
    @pytest.fixture(autouse=True)
    def bare_machine(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "package.json").write_text("{}")
        monkeypatch.setattr(openid, "HERE", tmp_path)
        self.programs = {"apt-get"}
        self.commands: list[tuple[str, ...]] = []
        monkeypatch.setattr(shutil, "which", lambda name: name if name in self.programs else None)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(provision, "run", self.run)

    def run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if "nodejs" in command:
            self.programs |= {"node", "npm"}
        if command[0] == "npm":
            assert cwd is not None
            (cwd / "node_modules" / "oidc-provider").mkdir(parents=True, exist_ok=True)
        return subprocess.CompletedProcess(command, 0, "what it said")

    def test_root_on_debian_gets_everything_and_only_once(self) -> None:
        assert provision.provide_openid_provider() == 0
        assert [command[-1] for command in self.commands] == ["update", "npm", "--ignore-scripts"]
        assert provision.provide_openid_provider() == 0
        assert len(self.commands) == 3
        (openid.HERE / "package.json").write_text('{"dependencies": {}}')
        assert provision.provide_openid_provider() == 0
        assert [command[0] for command in self.commands[3:]] == ["npm"]

    @pytest.mark.parametrize("programs", [set[str](), {"apt-get"}, {"node"}])
    def test_what_to_install_is_said_in_one_line(
        self, programs: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.programs = programs
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert provision.provide_openid_provider() == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "The OpenID provider is missing: " in line
        assert "install" in line
        assert self.commands == []

    @pytest.mark.parametrize("programs", [{"apt-get"}, {"node", "npm"}])
    def test_an_installation_that_fails_is_told_with_all_that_was_said(
        self, programs: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.programs = programs
        monkeypatch.setattr(
            provision, "run", lambda *command, cwd=None: subprocess.CompletedProcess(command, 1, "E: no network")
        )
        assert provision.provide_openid_provider() == 1
        assert "E: no network" in capsys.readouterr().err


def test_the_makefile_names_tests_that_are_there() -> None:
    root = Path(__file__).resolve().parents[2]
    named = set(re.findall(r"tests/[\w/]+(?:\.py)?", (root / "Makefile").read_text(encoding="utf-8")))
    assert "tests/integration/test_serve.py" in named
    assert {name for name in named if not (root / name).exists()} <= {"tests/servers/openid_provider/node_modules"}


def test_the_files_with_tests_that_stop_a_broker_are_known() -> None:
    files = (Path(__file__).resolve().parents[1] / "integration").rglob("test_*.py")
    assert {file.name for file in files if "own_node: RabbitMQNode" in file.read_text(encoding="utf-8")} == STOPPING


# --- RabbitMQ of another root -----------------------------------------------------------------------------------------


def test_a_program_of_another_root_is_run_in_it_and_keeps_its_process_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "usr" / "lib" / "rabbitmq" / "bin"
    inside.mkdir(parents=True)
    (inside / "rabbitmq-server").touch()
    monkeypatch.setenv("NUROPB_TEST_RABBITMQ_ROOT", str(tmp_path))
    assert find_program("rabbitmq-server") == "/usr/lib/rabbitmq/bin/rabbitmq-server"
    assert find_program("rabbitmqctl") is None
    assert find_program("epmd") is None
    run = command("/usr/lib/rabbitmq/bin/rabbitmq-server")
    assert run[0] == "unshare"
    assert run[-3:] == (str(tmp_path), tempfile.gettempdir(), "/usr/lib/rabbitmq/bin/rabbitmq-server")
    assert 'exec chroot "$root" "$@"' in ENTER


def test_without_another_root_a_program_is_run_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUROPB_TEST_RABBITMQ_ROOT", raising=False)
    assert command("/usr/sbin/rabbitmqctl") == ("/usr/sbin/rabbitmqctl",)


def test_lines_for_all_nodes_are_separated_by_semicolons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUROPB_TEST_RABBITMQ_SETTINGS", "a = 1; b.c = false;")
    assert common_settings() == ["a = 1", "b.c = false"]


def test_commands_of_rabbitmqctl_are_calls_in_the_node() -> None:
    assert erlang_call(["add_vhost", "a"]) == "rabbit_vhost:add(<<97>>, <<116,101,115,116,115>>)"
    for options in (["--vhost", "v"], ["-p", "v"]):
        call = erlang_call(["set_permissions", *options, "u", "c", "w", "r"])
        assert call is not None
        assert call.startswith("rabbit_auth_backend_internal:set_permissions(<<117>>, <<118>>, <<99>>, <<119>>, ")
    call = erlang_call(["set_vhost_limits", "--vhost", "v", "{}"])
    assert call == "rabbit_vhost_limit:parse_set(<<118>>, <<123,125>>, <<116,101,115,116,115>>)"
    assert (erlang_call(["stop_app"]), erlang_call(["start_app"])) == ("rabbit:stop()", "rabbit:start()")
    assert erlang_call(["list_queues"]) is None
    assert erlang_call(["add_vhost", "a", "--default-queue-type", "quorum"]) is None
