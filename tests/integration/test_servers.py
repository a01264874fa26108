"""The brokers, services and clients that the other tests use, without the gateway."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.processes import PeerError, ServiceProcess, call_with_nuropb
from tests.servers.rabbitmq import RabbitMQError, RabbitMQNode, answers_amqp

ROOT = Path(__file__).resolve().parents[2]

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def call(amqp_url: str, echo_service: ServiceProcess) -> Call:
    """Return a function that calls the session's echo service with nuropb's own client."""

    def call_echo(method: str, params: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        return call_with_nuropb(amqp_url, echo_service.service, method, params, **options)

    return call_echo


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Return whether a process that is no child of this one exists, zombies excepted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before the file was opened, or before it was read
        return False


def test_a_client_calls_a_service(call: Call) -> None:
    response = call("echo", {"text": "ü", "list": [1, {"a": None}]}, context={"user_id": "u1"})
    assert response["result"] == {"text": "ü", "list": [1, {"a": None}]}
    assert response["error"] is None
    assert response["context"] == {"user_id": "u1"}


def test_the_context_reaches_the_method_that_asks_for_it(call: Call) -> None:
    context = {"user_id": "u1", "Authorization": "Bearer x"}
    assert call("whoami", context=context)["result"] == context


def test_an_unknown_method_is_an_error(call: Call) -> None:
    error = call("no_such_method")["error"]
    assert error == {"error": "NuropbHandlingError", "description": "Unknown method no_such_method"}


def test_an_exception_of_a_method_is_an_error(call: Call) -> None:
    error = call("fail_value")["error"]
    assert error["error"] == "NuropbException"
    assert "hunter2" in error["description"]


def test_a_missing_service_is_an_error(amqp_url: str) -> None:
    assert call_with_nuropb(amqp_url, "nobody", "echo")["error"]["error"] == "NuropbNotDeliveredError"


def test_a_method_that_asks_to_be_called_again_is_called_again(call: Call) -> None:
    assert call("call_again", {"key": "test_servers"})["result"] == "at last"


def test_an_encrypted_call_is_answered_encrypted(call: Call) -> None:
    description = call("nuropb_describe")["result"]
    assert description["public_key"].startswith("-----BEGIN PUBLIC KEY-----")
    assert description["methods"]["secret"]["requires_encryption"] is True
    assert "hidden" not in description["methods"]
    assert call("secret", {"value": "s"}, encrypted=True)["result"] == "kept s"


def test_a_command_is_executed(call: Call) -> None:
    assert call("record", {"by": "command"}, command=True) == {"sent": True}
    assert {"by": "command"} in call("recorded")["result"]


def test_an_event_reaches_the_service(amqp_url: str, call: Call) -> None:
    call_with_nuropb(amqp_url, params={"n": 1}, event="orders.created", context={"user_id": "u1"})
    call("emit", {"topic": "orders.paid", "event": [2], "target": ["t"]})
    assert call("events")["result"][-2:] == [
        {"topic": "orders.created", "event": {"n": 1}, "target": None, "context": {"user_id": "u1"}},
        {
            "topic": "orders.paid",
            "event": [2],
            "target": ["t"],
            "context": {"service": call("nuropb_describe")["result"]["service_name"]},
        },
    ]


def test_a_slow_call_ends_in_the_clients_timeout(call: Call) -> None:
    with pytest.raises(PeerError, match="TimeoutError"):
        call("slow", {"seconds": 1.5}, timeout=1.0)


def test_nuropbs_own_example_service_answers(amqp_url: str) -> None:
    with ServiceProcess(amqp_url, "stub", kind="stub", events=(), dl_queue="nuropb-dl-queue") as stub:
        response = call_with_nuropb(amqp_url, stub.service, "test_method")
    assert response["result"] == "response from stub.test_method"


def test_a_service_ends_on_sigterm(amqp_url: str) -> None:
    with ServiceProcess(amqp_url, "brief") as service:
        os.kill(service.pid, signal.SIGTERM)
        assert service.wait() == 0


def test_a_service_that_cannot_connect_reports_the_reason() -> None:
    service = ServiceProcess("amqp://guest:guest@127.0.0.1:1/mesh", "nobody")
    with pytest.raises(PeerError, match=r"(?s)service nobody ended.*AMQPConnection"):
        service.__enter__()
    service.__exit__()


@pytest.fixture
def mesh_url(own_node: RabbitMQNode) -> Iterator[str]:
    """An empty mesh on the node that tests may kill."""
    yield own_node.add_vhost("test/servers")
    own_node.delete_vhost("test/servers")


def test_a_queue_outlives_its_service_and_a_kill_of_the_broker(own_node: RabbitMQNode, mesh_url: str) -> None:
    def queue() -> dict[str, Any]:
        rows = own_node.list_queues("test/servers")
        return next(row for row in rows if row["name"] == service.queue)

    with ServiceProcess(mesh_url, "orders") as service:
        before = queue()
        assert (before["durable"], before["consumers"]) == (True, 1)
        # Newer brokers write the queue's type beside them.
        arguments = {**before["arguments"], "x-queue-type": "classic"}
        assert arguments == {"x-dead-letter-exchange": "nuropb-dl-exchange", "x-queue-type": "classic"}
        (connection,) = own_node.list_connections()
        assert connection["vhost"] == "test/servers"
        assert connection["client_properties"]["capabilities"]["basic.nack"] is True
        service.kill()
        own_node.kill()
        assert not answers_amqp(mesh_url)

        own_node.start()
        assert queue() == {**before, "consumers": 0}
        service.start()
        assert call_with_nuropb(mesh_url, "orders", "add", {"a": 1, "b": 2})["result"] == 3


def test_a_node_can_be_frozen_and_closed_cleanly(own_node: RabbitMQNode) -> None:
    own_node.freeze()
    try:
        assert not answers_amqp(own_node.url(), timeout=0.2)
    finally:
        own_node.thaw()
    assert answers_amqp(own_node.url(), timeout=10)

    own_node.stop_app()
    assert not answers_amqp(own_node.url())
    own_node.start_app()
    assert answers_amqp(own_node.url())


def test_a_failed_control_command_reports_the_reason(own_node: RabbitMQNode) -> None:
    with pytest.raises(RabbitMQError, match="no_such_vhost"):
        own_node.delete_vhost("no_such_vhost")


OWNER = """
import sys
from tests.servers.rabbitmq import RabbitMQNode
node = RabbitMQNode()
node.prepare()
node._launch("server", *node._server)
print(node._directory, *[process.pid for process in node._processes.values()], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_node_ends_with_its_owner(own_node: RabbitMQNode, how: signal.Signals | None) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        directory, *pids = owner.stdout.readline().split()
        assert Path(directory).is_dir()
        assert all(alive(int(pid)) for pid in pids)
        if how is None:
            owner.stdin.close()
        else:
            owner.send_signal(how)
        owner.wait(10)
        wait_until(lambda: not any(alive(int(pid)) for pid in pids))
        wait_until(lambda: not Path(directory).exists())
