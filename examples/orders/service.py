"""A service: orders, for as long as the process lives.

By itself it is hosted on RabbitMQ; without RabbitMQ, ``app.py`` runs it in its own process::

    python -m examples.orders.service amqp://guest:guest@127.0.0.1:5672/
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from dataclasses import dataclass
from typing import Any

from nuropb_gateway_asgi.mesh import PublishEvent, serve, with_context
from nuropb_gateway_asgi.mesh.errors import NuropbAuthorizationError, NuropbValidationError


@dataclass
class Order:
    """One order, and whose it is."""

    number: int
    user_id: str
    item: str
    quantity: int
    shipped: bool = False


class Orders:
    """Order things, and have them shipped."""

    _service_name = "orders"
    _version = "1.0.0"
    _publish: PublishEvent

    def __init__(self) -> None:
        self._orders: dict[int, Order] = {}
        self._numbers = itertools.count(1)

    async def _run_(self, publish: PublishEvent) -> None:
        # Called once, before anything else. A service that did something by itself would do it here.
        self._publish = publish

    @with_context
    def create(self, context: dict[str, Any], item: str, quantity: int = 1) -> Order:
        """Order something. Everybody who subscribed to ``orders.created`` hears of it, but not of whose it is."""
        # Annotations are for those who read them: clients send what they like.
        if type(item) is not str or not item.strip():
            raise NuropbValidationError("item must say what is ordered")
        if type(quantity) is not int or not 1 <= quantity <= 100:
            raise NuropbValidationError("quantity must be a number from 1 to 100")
        order = Order(next(self._numbers), context["user_id"], item.strip(), quantity)
        self._orders[order.number] = order
        self._publish("orders.created", {"number": order.number, "item": order.item, "quantity": order.quantity})
        return order

    @with_context
    def mine(self, context: dict[str, Any]) -> list[Order]:
        """The caller's orders."""
        return [order for order in self._orders.values() if order.user_id == context["user_id"]]

    @with_context
    async def ship(self, context: dict[str, Any], number: int) -> Order:
        """Ship an order of the caller's. The event goes to its owner alone, wherever they are connected."""
        order = self._orders.get(number)
        if order is None or order.user_id != context["user_id"]:
            raise NuropbAuthorizationError("there is no such order of yours")
        await asyncio.sleep(0.1)  # a courier takes his time, and others are served meanwhile
        order.shipped = True
        self._publish("orders.shipped", {"number": order.number, "item": order.item}, target=[order.user_id])
        return order

    def count(self) -> int:
        """How many orders there are."""
        return len(self._orders)


if __name__ == "__main__":
    asyncio.run(serve(Orders(), sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@127.0.0.1:5672/"))
