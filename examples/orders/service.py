"""A service that keeps orders in memory.

This module hosts it on RabbitMQ. Without RabbitMQ, ``app.py`` runs it in the process of the application::

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
    """An order of a user."""

    number: int
    user_id: str
    item: str
    quantity: int
    shipped: bool = False


class Orders:
    """The service ``orders``: create, list and ship orders."""

    _service_name = "orders"
    _version = "1.0.0"
    _publish: PublishEvent

    def __init__(self) -> None:
        self._orders: dict[int, Order] = {}
        self._numbers = itertools.count(1)

    async def _run_(self, publish: PublishEvent) -> None:
        # Called once, before any method. Background work of a service would go here.
        self._publish = publish

    @with_context
    def create(self, context: dict[str, Any], item: str, quantity: int = 1) -> Order:
        """Create an order. Subscribers of ``orders.created`` get an event, which does not name the user."""
        # Arguments that do not fit the annotations do not get here.
        if not item.strip():
            raise NuropbValidationError("item must not be empty")
        if not 1 <= quantity <= 100:
            raise NuropbValidationError("quantity must be a number from 1 to 100")
        order = Order(next(self._numbers), context["user_id"], item.strip(), quantity)
        self._orders[order.number] = order
        self._publish("orders.created", {"number": order.number, "item": order.item, "quantity": order.quantity})
        return order

    @with_context
    def mine(self, context: dict[str, Any]) -> list[Order]:
        """Return the caller's orders."""
        return [order for order in self._orders.values() if order.user_id == context["user_id"]]

    @with_context
    async def ship(self, context: dict[str, Any], number: int) -> Order:
        """Ship one of the caller's orders. The event goes to all connections of that user, and to no other user."""
        order = self._orders.get(number)
        if order is None or order.user_id != context["user_id"]:
            raise NuropbAuthorizationError("you have no order with this number")
        await asyncio.sleep(0.1)  # delivery takes time; other calls are served meanwhile
        order.shipped = True
        self._publish("orders.shipped", {"number": order.number, "item": order.item}, target=[order.user_id])
        return order

    def count(self) -> int:
        """Return the number of orders."""
        return len(self._orders)


if __name__ == "__main__":
    asyncio.run(serve(Orders(), sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@127.0.0.1:5672/"))
