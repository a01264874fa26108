"""Bytes in calls and events of the Python client, and uploads."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, cast

import pytest

from nuropb_gateway_asgi.client import Client, Hello, upload
from nuropb_gateway_asgi.client._frames import decode_frame
from nuropb_gateway_asgi.client._json import encode

TAGGED = {"$bytes": "AAH/"}
DATA = bytes(range(256)) * 40


class Service:
    """A client of a service that keeps what is uploaded, by id; it takes at most ``takes`` bytes of a call."""

    def __init__(self, *, takes: int = 10**9, fails_at: int | None = None) -> None:
        self.hello: Hello | None = None
        self.files: dict[str, bytearray] = {}
        self.calls: list[dict[str, Any]] = []
        self.takes = takes
        self.fails_at = fails_at

    async def request(self, service: str, method: str, params: dict[str, Any], **options: Any) -> Any:
        assert (service, method, options["idempotent"]) == ("files", "put", True)
        self.calls.append(params)
        if len(self.calls) == self.fails_at:
            raise ConnectionError
        file = self.files.setdefault(params["upload"], bytearray())
        if "offset" in params:
            assert params["offset"] == len(file)
            file += base64.b64decode(params["data"]["$bytes"])[: self.takes]
        return {"received": len(file), "result": "kept" if len(file) == params["size"] else None}


async def put(service: Service, source: Any, **options: Any) -> Any:
    return await upload(cast("Client", service), source, "files", "put", {"name": "a"}, **options)


# --- bytes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"\x00\x01\xff", bytearray(b"\x00\x01\xff"), memoryview(b"\x00\x01\xff")])
def test_bytes_are_sent_with_a_tag_where_the_application_asks_for_it(value: Any) -> None:
    assert json.loads(encode({"a": [value]}, 32, binary=True)) == {"a": [TAGGED]}
    with pytest.raises(TypeError, match=r"a\[0\]: a value of type"):
        encode({"a": [value]}, 32)


def test_what_json_lacks_is_refused_beside_bytes_too() -> None:
    with pytest.raises(TypeError, match=r"a\[1\]: a value of type set"):
        encode({"a": [b"", {1}]}, 32, binary=True)


@pytest.mark.parametrize(
    ("given", "received"),
    [
        (TAGGED, b"\x00\x01\xff"),
        ({"$bytes": ""}, b""),
        ({"$bytes": "A"}, {"$bytes": "A"}),
        ({"$bytes": "AA?="}, {"$bytes": "AA?="}),
        ({"$bytes": "AAH/", "more": 1}, {"$bytes": "AAH/", "more": 1}),
        ({"$bytes": 1}, {"$bytes": 1}),
        ({"n": 2**63 - 1, "b": TAGGED}, {"n": 2**63 - 1, "b": b"\x00\x01\xff"}),
    ],
)
def test_tagged_objects_arrive_as_bytes_and_all_others_as_they_are(given: Any, received: Any) -> None:
    text = json.dumps({"type": "response", "payload": {"id": "1", "result": given}})
    assert (decode_frame(text, binary=True) or {})["payload"]["result"] == received
    assert (decode_frame(text) or {})["payload"]["result"] == given


@pytest.mark.parametrize("text", ['{"$bytes": NaN}', '{"a": {"$bytes": ""}', "[" * 100_000 + '"$bytes"', '"$bytes"'])
def test_a_text_that_is_no_object_of_json_is_no_frame(text: str) -> None:
    assert decode_frame(text, binary=True) is None


# --- uploads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("takes", [10**9, 7])
async def test_a_file_reaches_the_service_whole_with_progress(takes: int) -> None:
    service = Service(takes=takes)
    progress: list[tuple[int, int]] = []
    data = DATA[:100]
    assert await put(service, data, chunk_size=30, on_progress=lambda *each: progress.append(each)) == "kept"
    (file,) = service.files.values()
    assert bytes(file) == data
    assert progress[0] == (0, 100)
    assert progress[-1] == (100, 100)
    assert [received for received, _ in progress] == sorted({received for received, _ in progress})
    assert {call["name"] for call in service.calls} == {"a"}


async def test_an_upload_with_the_same_id_goes_on_where_the_service_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    service = Service(fails_at=4)
    with pytest.raises(ConnectionError):
        await put(service, path, upload_id="u", chunk_size=1000)
    before = len(service.files["u"])
    assert before == 2000
    with path.open("rb") as file:
        assert await put(service, file, upload_id="u", chunk_size=1000) == "kept"
    assert service.files["u"] == DATA
    assert service.calls[5]["offset"] == before


async def test_a_call_has_as_many_bytes_as_the_gateway_takes() -> None:
    service = Service()
    await put(service, bytes(200_000))
    assert max(len(json.dumps(call)) for call in service.calls) in range(60_000, 65_536)


async def test_an_empty_file_is_one_call() -> None:
    service = Service()
    assert await put(service, b"") == "kept"
    assert len(service.calls) == 1


async def test_a_service_that_takes_nothing_ends_the_upload() -> None:
    with pytest.raises(ValueError, match="took no bytes at 0"):
        await put(Service(takes=0), b"abc")


@pytest.mark.parametrize("answer", [None, {}, {"received": -1}, {"received": 4}, {"received": True}, {"received": "1"}])
async def test_an_answer_without_a_number_of_bytes_ends_the_upload(answer: Any) -> None:
    class Wrong(Service):
        async def request(self, *_args: Any, **_options: Any) -> Any:
            return answer

    with pytest.raises(ValueError, match=r"files\.put must return received"):
        await put(Wrong(), b"abc")
