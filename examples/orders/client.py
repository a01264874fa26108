"""A script that places an order and waits until it is shipped: ``python -m examples.orders.client alice tea``."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import urllib.request

from nuropb_gateway_asgi.client import GatewayEvent, InvalidParams, connect


def sign_in(url: str, name: str) -> str:
    """Request a token from the application."""
    body = json.dumps({"name": name}).encode()
    request = urllib.request.Request(f"{url}/sign-in", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        token: str = json.load(response)["token"]
        return token


async def main(url: str, name: str, item: str) -> None:
    """Order ``item`` as user ``name``."""
    shipped: set[int] = set()
    news = asyncio.Event()

    def on_event(event: GatewayEvent) -> None:
        if event.topic == "orders.shipped":
            shipped.add(event.event["number"])
            news.set()

    # The client calls this function, in a thread, for every connection and before a token expires.
    async with connect(f"ws{url.removeprefix('http')}/gateway/ws", token=lambda: sign_in(url, name)) as gateway:
        try:
            await gateway.request("orders", "create", {"item": item, "quantity": 1000})
        except InvalidParams as error:
            print(f"Rejected: {error}")
        async with gateway.subscribe("orders.created") as created:
            order = await gateway.request("orders", "create", {"item": item})
            print(f"Ordered {order['item']} as number {order['number']}")
            async for event in created:
                print(f"Everybody hears of number {event.event['number']}")
                if event.event["number"] == order["number"]:
                    break
        gateway.on("event", on_event)  # events for one user need no subscription
        await gateway.command("orders", "ship", {"number": order["number"]})
        while order["number"] not in shipped:
            news.clear()
            await news.wait()
        count = len(await gateway.request("orders", "mine"))
        print(f"Number {order['number']} is shipped; {name} has {count} {'order' if count == 1 else 'orders'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Places an order and waits until it is shipped.")
    parser.add_argument("name", nargs="?", default="alice", help="the user who orders")
    parser.add_argument("item", nargs="?", default="tea", help="the item to order")
    parser.add_argument(
        "--url", default=os.environ.get("ORDERS_URL", "http://127.0.0.1:8000"), help="URL of the application"
    )
    options = parser.parse_args()
    asyncio.run(main(options.url, options.name, options.item))
