"""Uploads: a file, cut into calls of a method that the user's service has."""

from __future__ import annotations

import asyncio
import io
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from ._client import Client
from ._json import tagged
from ._state import Limits

__all__ = ["upload"]

#: Bytes of a frame beside the file's, for names and ids.
_OVERHEAD: Final = 2048
_MAX_CHUNK: Final = 512 * 1024


async def upload(
    client: Client,
    source: bytes | bytearray | memoryview | Path | BinaryIO,
    service: str,
    method: str,
    params: Mapping[str, Any] | None = None,
    *,
    upload_id: str | None = None,
    chunk_size: int | None = None,
    on_progress: Callable[[int, int], object] | None = None,
    timeout: float | None = None,  # noqa: ASYNC109 - of each call
    retries: int = 5,
) -> Any:
    """Upload ``source``, a file that can be read anywhere, and return the ``result`` of the last call.

    The method gets ``params`` and ``upload`` (the id), ``size`` (of the file, in bytes), and, except in the first call,
    ``offset`` and ``data``. It returns ``received``, the number of bytes that it has, and at the end ``result``. An
    upload with the same ``upload_id`` goes on where the service is. Each call is idempotent, since ``offset`` says
    where its bytes belong; ``timeout`` (seconds) and ``retries`` are those of each call. A call has ``chunk_size``
    bytes of the file: by default as many as the gateway's limit of a message allows, 512 KiB at most. ``on_progress``
    gets ``received`` and ``size`` after each call.

    Raises the errors of :meth:`Client.request`, ValueError for a service that returns no such number or takes no bytes,
    and OSError for a file that cannot be read. After a cancellation, the service has the bytes of the calls before.
    """
    if isinstance(source, Path):
        with await asyncio.to_thread(source.open, "rb") as opened:
            return await upload(
                client,
                opened,
                service,
                method,
                params,
                upload_id=upload_id,
                chunk_size=chunk_size,
                on_progress=on_progress,
                timeout=timeout,
                retries=retries,
            )
    file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source
    size = await asyncio.to_thread(file.seek, 0, io.SEEK_END)
    common = {**(params or {}), "upload": upload_id or secrets.token_hex(16), "size": size}

    async def call(more: Mapping[str, Any]) -> tuple[int, Any]:
        answer = await client.request(
            service, method, {**common, **more}, timeout=timeout, idempotent=True, retries=retries
        )
        received = answer.get("received") if isinstance(answer, dict) else None
        if not isinstance(received, int) or isinstance(received, bool) or not 0 <= received <= size:
            raise ValueError(f"{service}.{method} must return received: a number of bytes from 0 to {size}")
        if on_progress is not None:
            on_progress(received, size)
        return received, answer.get("result")

    # Without an offset, the service says how much it has.
    received, result = await call({})
    while received < size:
        room = chunk_size or _room(client, common)
        data = await asyncio.to_thread(_read, file, received, room)
        if not data:
            raise ValueError(f"the file has ended at {received} bytes; expected {size}")
        before = received
        received, result = await call({"offset": before, "data": tagged(data)})
        if received <= before:
            raise ValueError(f"{service}.{method} took no bytes at {before}")
    return result


def _room(client: Client, common: Mapping[str, Any]) -> int:
    limits = Limits() if client.hello is None else client.hello.limits
    room = limits.max_message_size - _OVERHEAD - len(json.dumps(common, default=str))
    return max(1, min(_MAX_CHUNK, room // 4 * 3))


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
