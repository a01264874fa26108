"""Topics as resources, whose content is the last event where there is a history, else the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import anyio
import mcp_types as types
from mcp.shared.exceptions import MCPError

from ...authorization.tool_policy import ToolPolicy
from ...settings import Settings
from ...topics import check_topic, covers
from ..handler import AgentHandler
from .listening import subscribe, topic_of, uri_of

__all__ = ["HANDLER", "LIST_LIFETIME", "Context", "TopicResources", "handler_of", "page_of"]

#: Entries of a page of a list.
PAGE_SIZE: Final = 100
#: Milliseconds for which a host may reuse a list: it is told of changes only while it listens for them.
LIST_LIFETIME: Final = 1000
#: The key of the request's handler in its scope.
HANDLER: Final = "nuropb.agent"
_JSON: Final = "application/json"

#: The library's context of a request.
Context: TypeAlias = Any


class TopicResources:
    """The topics that a user may subscribe to. ``has_history`` tells whether the events of a pattern are kept."""

    def __init__(self, settings: Settings, policy: ToolPolicy, has_history: Callable[[str], bool]) -> None:
        self._settings = settings
        self._policy = policy
        self._has_history = has_history

    async def list(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
        """Answer with the topics that the policy names in full."""
        topics = sorted({topic for topic in self._topics(ctx) if check_topic(topic) is None})
        page, cursor = page_of(topics, params, str)
        resources = [
            types.Resource(uri=uri_of(topic), name=topic, description=f"Events of {topic}", mime_type=_JSON)
            for topic in page
        ]
        return types.ListResourcesResult(
            resources=resources, next_cursor=cursor, ttl_ms=LIST_LIFETIME, cache_scope="private"
        )

    async def list_templates(
        self, ctx: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        """Answer with one template, whose description has the patterns of topics."""
        topics = self._topics(ctx)
        allowed = f"Events of a topic. Allowed patterns of topics: {', '.join(topics[:PAGE_SIZE])}"
        template = types.ResourceTemplate(
            uri_template=uri_of("{topic}"), name="topic", description=allowed, mime_type=_JSON
        )
        return types.ListResourceTemplatesResult(
            resource_templates=[template] if topics else [], ttl_ms=LIST_LIFETIME, cache_scope="private"
        )

    def _topics(self, ctx: Context) -> Sequence[str]:
        identity = handler_of(ctx).identity
        assert identity is not None  # noqa: S101 - it is registered
        return [topic for topic in self._policy.topics(identity) if topic.isprintable()]

    async def read(self, ctx: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        """Answer with the last event of a topic that has a history, else with the next one."""
        handler, topic = handler_of(ctx), topic_of(params.uri)
        event: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

        def take(payload: str | None) -> None:
            if not event.done():
                event.set_result(payload)

        handler.on_event = lambda of, payload: take(payload) if covers(topic, of) else None
        handler.on_ended = lambda: take(None)
        await subscribe(handler, topic, last=int(self._has_history(topic)))
        payload = None
        with anyio.move_on_after(self._settings.request_timeout):
            payload = await event
        if payload is None:
            raise MCPError(types.INTERNAL_ERROR, "No event of this topic came in time; listen for it, or read again")
        contents = types.TextResourceContents(uri=params.uri, mime_type=_JSON, text=payload)
        return types.ReadResourceResult(contents=[contents], ttl_ms=0, cache_scope="private")


def handler_of(ctx: Context) -> AgentHandler:
    """Return the handler of a request, which is in its scope."""
    handler: AgentHandler = ctx.request.scope[HANDLER]
    return handler


def page_of(
    entries: Sequence[Any], params: types.PaginatedRequestParams | None, name: Callable[[Any], str]
) -> tuple[Sequence[Any], str | None]:
    """Return the page behind the cursor, which is the name of the last entry before it, and the next cursor."""
    cursor = None if params is None else params.cursor
    rest = [entry for entry in entries if cursor is None or name(entry) > cursor]
    page = rest[:PAGE_SIZE]
    return page, name(page[-1]) if len(rest) > len(page) else None
