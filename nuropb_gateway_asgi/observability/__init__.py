"""Which messages and figures does an operator get? Logs and metrics.

* ``logs`` configures logging, and keeps content of clients out of the logs.
* ``log_files`` loads an operator's logging configuration.
* ``refusal_lines`` bounds the lines about refused requests.
* ``metrics`` has the metrics for Prometheus.
"""

from __future__ import annotations

from .logs import JSONFormatter, configure_logging, filtered_server_logs
from .metrics import Metrics

__all__ = ["JSONFormatter", "Metrics", "configure_logging", "filtered_server_logs"]
