"""What is going on? Logs and metrics."""

from __future__ import annotations

from .logs import JSONFormatter, configure_logging, filtered_server_logs
from .metrics import Metrics

__all__ = ["JSONFormatter", "Metrics", "configure_logging", "filtered_server_logs"]
