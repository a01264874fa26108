"""What ``check`` tells an operator to do about a broker."""

from __future__ import annotations

import pytest

from nuropb_gateway_asgi.mesh.rabbitmq._errors import BrokerRefused, explain
from nuropb_gateway_asgi.mesh.rabbitmq._remedies import remedy_for

URL = "amqp://gateway:hunter2@broker.example/my%20shop"


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        (
            "the broker refuses the vhost: it does not exist",
            "rabbitmqctl add_vhost 'my shop'; rabbitmqctl set_permissions -p 'my shop' gateway",
        ),
        ("the broker refuses the credentials or the vhost (ACCESS_REFUSED)", "rabbitmqctl authenticate_user gateway"),
        (
            "ConnectionError: [Errno 111] Connect call failed ('10.0.0.1', 5672)",
            "start RabbitMQ at broker.example:5672",
        ),
        ("gaierror: [Errno -2] Name or service not known", "the spelling of broker.example"),
        ("no answer from the broker in time", "RabbitMQ runs at broker.example:5672"),
    ],
)
def test_a_fault_of_a_broker_has_a_remedy_that_keeps_the_password(fault: str, remedy: str) -> None:
    found = remedy_for(fault, URL)
    assert found is not None
    assert remedy in found
    assert "hunter2" not in found


def test_a_fault_without_a_remedy_of_its_own_has_none() -> None:
    assert remedy_for("the broker refuses more: one of its limits is reached", URL) is None


@pytest.mark.parametrize(
    "words",
    [
        "connection limit (10) is reached",
        "queue limit in vhost 'a' (0) is reached",
        "number of channels opened for user 'a' has reached the maximum allowed user limit of (1)",  # until 4.2
        "number of channels opened for user 'a' has reached the maximum allowed user limit of 1",  # 4.3
        "number of channels opened on node 'a' has reached the maximum allowed limit of 5",
        "number of channels opened (3) has reached the negotiated channel_max (2)",
    ],
)
def test_a_limit_is_known_by_the_words_of_every_version(words: str) -> None:
    assert explain(BrokerRefused(f"NOT_ALLOWED - {words}")).startswith("the broker refuses more: one of its limits")
