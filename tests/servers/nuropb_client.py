"""One call made with nuropb's own client; the response is printed as one line of JSON.

``nuropb_client.py --url amqp://... --service NAME --method NAME --params '{}'``. Without arguments it reads them from
its standard input, a line of JSON for each call, and makes each call in a fork, which saves the import of nuropb. It
runs on Python 3.11 with nuropb 0.1.8 and imports nothing of the gateway.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from nuropb.rmq_api import RMQAPI


async def call(options: argparse.Namespace) -> Any:
    api = RMQAPI(amqp_url=options.url, instance_id=uuid4().hex)
    await api.connect()
    if not api.connected:  # connect() logs what is wrong and returns
        raise ConnectionError("not connected")
    try:
        return await send(api, options)
    finally:
        await api.disconnect()


async def send(api: Any, options: argparse.Namespace) -> Any:
    trace_id = uuid4().hex
    if options.event:
        api.publish_event(topic=options.event, event=options.params, context=options.context, trace_id=trace_id)
        return {"sent": True}
    if options.encrypted:
        await api.describe_service(options.service)  # brings the service's public key
    message = {
        "service": options.service,
        "method": options.method,
        "params": options.params,
        "context": options.context,
        "ttl": options.ttl,
        "trace_id": trace_id,
        "encrypted": options.encrypted,
    }
    if options.command:
        api.command(**message)
        return {"sent": True}
    return await api.request(**message, rpc_response=False)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="A NuroPb client for tests.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--service", default="")
    parser.add_argument("--method", default="")
    parser.add_argument("--params", type=json.loads, default={}, help="JSON; with --event the event itself")
    parser.add_argument("--context", type=json.loads, default={})
    parser.add_argument("--command", action="store_true")
    parser.add_argument("--event", metavar="TOPIC")
    parser.add_argument("--encrypted", action="store_true")
    parser.add_argument("--ttl", type=int, help="milliseconds")
    parser.add_argument("--timeout", type=float, default=15.0, help="seconds")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    # nuropb's client itself would wait for ever.
    response = asyncio.run(asyncio.wait_for(call(options), options.timeout))
    print(json.dumps(response))
    return 0


def make_calls() -> None:
    """Make a call for each line of the standard input; print the exit status of each, its output and its errors."""
    for line in sys.stdin:
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            pid = os.fork()
            if not pid:
                os.dup2(output.fileno(), 1)
                os.dup2(errors.fileno(), 2)
                status = 1
                try:
                    status = main(json.loads(line))
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
            _, ended = os.waitpid(pid, 0)
            texts = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode() for file in (output, errors)]
            print(json.dumps([os.waitstatus_to_exitcode(ended), *texts]), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(sys.argv[1:]))
    make_calls()
