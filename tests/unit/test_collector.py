"""The garbage collector of a server's process."""

import subprocess
import sys

SCRIPT = """
import gc
from nuropb_gateway_asgi.server.websocket import COLLECT_AFTER, tune_collector

tune_collector()
assert gc.get_threshold()[:2] == COLLECT_AFTER[:2]
assert gc.get_freeze_count() > 10_000
"""


def test_a_server_looks_at_its_connections_seldom_and_at_its_modules_never() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
