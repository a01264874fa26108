"""The pictures of the console in ``docs/pictures``: ``python -m tests.kit.pictures`` takes them anew."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from nuropb_gateway_asgi.mesh.demo import DemoService
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from nuropb_gateway_asgi.mesh.errors import NuropbValidationError

from .gateways import RunningGateway, make_gateway, run_gateway
from .pages import Page, Pages, run_pages
from .processes import ROOT

PICTURES: Final = ROOT / "docs" / "pictures"
#: The window of a laptop, high enough for the events.
DESK: Final = {"width": 1440, "height": 1140}
#: Seconds until the chart has something to show.
WARM_UP: Final = 12


class Orders:
    """Take and ship orders."""

    _service_name = "orders"
    _version = "1.4.0"

    def create(self, item: str, quantity: int = 1, note: Any = None) -> dict[str, Any]:
        """Order something. Subscribers of orders.created hear of it."""
        if quantity > 100:
            raise NuropbValidationError("quantity must be a number from 1 to 100")
        return {"number": 1047, "item": item, "quantity": quantity, "note": note, "shipped": False}

    def mine(self) -> list[dict[str, Any]]:
        """Return the caller's orders."""
        return []

    def ship(self, number: int) -> bool:
        """Ship an order."""
        return number > 0


async def work(page: Page) -> None:
    """Sign in, make some calls, and listen to events."""
    await page.fill("Token", "alice")
    await page.click("Sign in")
    await page.sees("Connected")
    await page.click("create", within=".services")
    await page.fill("item", "green tea")
    await page.fill("quantity", "2")


async def take(page: Page, name: str) -> None:
    path = str(PICTURES / f"console-{name}.png")
    await page.run("await page.screenshot({ path: args.path })", path=path)


async def desk(pages: Pages, gateway: RunningGateway, *, dark: bool, name: str) -> None:
    async with pages.open(gateway.site.http("/"), dark=dark, deviceScaleFactor=1.25, viewport=DESK) as page:
        await work(page)
        await page.click("Subscribe to demo.#", within=".events")
        for quantity in ("200", "2"):
            await page.fill("quantity", quantity)
            await page.click("Call", within=".call")
            await page.sees("invalid_params" if quantity == "200" else "green tea", within=".answer")
            await asyncio.sleep(WARM_UP / 2)
        await page.run("await page.getByText('Copy as code').click()")
        await take(page, name)
        if not dark:
            await page.click("Agents", within=".views")
            await page.sees("orders__create", within=".tools")
            await take(page, "agents")


async def phone(pages: Pages, gateway: RunningGateway) -> None:
    async with pages.open(gateway.site.http("/"), phone=True, deviceScaleFactor=2) as page:
        await work(page)
        await page.fill("quantity", "200")
        await page.click("Call", within=".call")
        await page.sees("invalid_params", within=".verdict")
        await page.run("await page.evaluate(() => scrollTo(0, 0))")
        await take(page, "phone")


async def main() -> None:
    """Take all pictures."""
    mesh = EmbeddedMesh({"demo": DemoService(), "orders": Orders()})
    made = make_gateway(
        mesh=mesh,
        mcp="on",
        expose=["demo.*", "orders.*"],
        expose_topics=["orders.created", "users.{user_id}.#", "demo.#"],
        expose_tools=["orders.*", "demo.add"],
    )
    async with run_gateway(made) as gateway, run_pages() as pages:
        await asyncio.gather(
            desk(pages, gateway, dark=False, name="light"),
            desk(pages, gateway, dark=True, name="dark"),
            phone(pages, gateway),
        )


if __name__ == "__main__":
    asyncio.run(main())
