"""Garbage collection in a server's process."""

import subprocess
import sys

SCRIPT = """
import gc
from nuropb_gateway_asgi.server.process import COLLECT_AFTER, tune_collector

tune_collector()
assert gc.get_threshold()[:2] == COLLECT_AFTER[:2]
assert gc.get_freeze_count() > 10_000
"""


def test_the_collector_visits_connections_rarely_and_modules_never() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
