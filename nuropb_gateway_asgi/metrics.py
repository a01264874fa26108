"""What a monitoring system asks for, in Prometheus' format; needs ``prometheus-client`` (the extra ``metrics``).

Only the end of a call is counted as it happens. Everything else is counted anyway, in plain integers, and carried over
when somebody asks, or every few seconds: with several worker processes (``PROMETHEUS_MULTIPROC_DIR`` set, see
prometheus-client) whichever of them is asked answers for all.

Label values are names that the operator or a service chose, never what a client sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ._policy_file import PolicyFile
from .handler_manager import HandlerManager
from .key_sets import KeySet
from .service_mesh_manager import ServiceMeshManager

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter

__all__ = ["Metrics"]

#: Seconds between two collections when nobody asks.
COLLECT_INTERVAL: Final = 5.0
#: Seconds between two looks at how late the event loop is.
LAG_INTERVAL: Final = 0.5
_DURATIONS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LAGS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)


class Metrics:
    """The metrics of one gateway."""

    def __init__(
        self,
        handler_manager: HandlerManager,
        service_mesh_manager: ServiceMeshManager,
        policy_file: PolicyFile | None = None,
        key_set: KeySet | None = None,
    ) -> None:
        import prometheus_client as prometheus

        self._handlers = handler_manager
        self._mesh = service_mesh_manager
        self._policy_file = policy_file
        self._key_set = key_set
        self._render = prometheus.exposition.generate_latest
        self._content_type = prometheus.CONTENT_TYPE_LATEST
        self._registry = registry = prometheus.CollectorRegistry()
        self._multiprocess = "PROMETHEUS_MULTIPROC_DIR" in os.environ

        def counter(name: str, text: str, *labels: str) -> Counter:
            return prometheus.Counter(f"nuropb_gateway_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, mode: Any = "livesum") -> Any:
            return prometheus.Gauge(f"nuropb_gateway_{name}", text, registry=registry, multiprocess_mode=mode)

        self._calls = counter("requests", "Calls that ended, by service and code", "service", "code")
        self._duration = prometheus.Histogram(
            "nuropb_gateway_request_duration_seconds",
            "From a call's frame to its answer",
            registry=registry,
            buckets=_DURATIONS,
        )
        self._lag = prometheus.Histogram(
            "nuropb_gateway_loop_lag_seconds", "How late the event loop is", registry=registry, buckets=_LAGS
        )
        self._ping = prometheus.Histogram(
            "nuropb_gateway_mesh_round_trip_seconds",
            "From publishing a message to oneself to its delivery",
            registry=registry,
            buckets=_DURATIONS,
        )
        self._gauges: list[tuple[Any, Callable[[], float]]] = [
            (gauge("connections", "Registered connections"), lambda: len(handler_manager)),
            (gauge("in_flight", "Calls without an answer yet"), lambda: service_mesh_manager.in_flight),
            (gauge("mesh_connected", "Processes that the mesh is connected to"), self._connected),
            (gauge("open_circuits", "Services that do not answer"), lambda: len(service_mesh_manager.open_circuits)),
            (gauge("outbox_bytes", "Bytes that wait for clients"), self._outbox_bytes),
            (gauge("policy_broken", "Processes in which the policy file is not in force"), self._policy_broken),
        ]
        self._refused = counter("handshakes_refused", "Handshakes refused, by reason", "reason")
        self._closed = counter("connections_closed", "Connections that the gateway closed, by code", "code")
        self._dropped = counter("dropped", "Replies and events dropped, by reason", "reason")
        self._reconnects = counter("mesh_reconnects", "Connections to the broker made anew")
        self._events = counter("events", "Events that came from the mesh")
        self._limited = counter("rate_limited", "Frames over a rate limit, by whose", "scope")
        self._ended = counter("subscriptions_ended", "Subscriptions that the policy ended")
        self._reloads = counter("policy_reloads", "Times that the policy file was loaded again", "result")
        self._published = counter("published", "Messages given to the broker")
        if key_set is not None:
            # Of several processes, the one that is worst off.
            keys, age = (
                ("keys", "Keys that tokens can be checked with"),
                ("keys_age_seconds", "Since they were fetched"),
            )
            self._gauges += [
                (gauge(*keys, "livemin"), lambda: key_set.size),
                (gauge(*age, "livemax"), lambda: key_set.age),
            ]
            self._key_failures = counter("key_fetch_failures", "Attempts to fetch the keys that failed")
        self._carried: dict[tuple[Counter, str], int] = {}
        service_mesh_manager.on_call_ended = self._on_call_ended

    @classmethod
    def create(
        cls,
        handler_manager: HandlerManager,
        service_mesh_manager: ServiceMeshManager,
        policy_file: PolicyFile | None = None,
        key_set: KeySet | None = None,
    ) -> Metrics | None:
        """The metrics, or None where prometheus-client is not installed."""
        try:
            return cls(handler_manager, service_mesh_manager, policy_file, key_set)
        except ModuleNotFoundError:
            return None

    def collect(self) -> None:
        """Carry over what was counted elsewhere."""
        for gauge, value in self._gauges:
            gauge.set(value())
        for reason, count in self._handlers.refused.items():
            self._carry(self._refused, reason, count)
        for code, count in self._handlers.closed.items():
            self._carry(self._closed, str(code), count)
        for scope, count in self._handlers.limited.items():
            self._carry(self._limited, scope, count)
        if self._policy_file is not None:
            for result, count in self._policy_file.reloads.items():
                self._carry(self._reloads, result, count)
        statistics = self._mesh.statistics
        mesh: dict[str, Any] = {}
        if hasattr(self._mesh.mesh, "statistics"):
            mesh = msgspec.structs.asdict(self._mesh.mesh.statistics)
        for reason, count in (
            ("late_reply", statistics.late_replies),
            ("double_reply", statistics.double_replies),
            ("unknown_reply", statistics.unknown_replies),
            ("abandoned_call", statistics.abandoned),
            ("oversized_event", statistics.oversized_events),
            ("controller_event", statistics.dropped_controller_events),
            ("slow_client_event", self._handlers.lost_events),
            ("bad_reply", mesh.get("dropped_replies", 0)),
            ("bad_event", mesh.get("dropped_events", 0)),
            ("repeated_event", mesh.get("repeated_events", 0)),
            ("expired_unsent", mesh.get("expired_unsent", 0)),
        ):
            self._carry(self._dropped, reason, count)
        self._carry(self._events, "", statistics.events)
        self._carry(self._ended, "", statistics.denied_subscriptions)
        self._carry(self._reconnects, "", mesh.get("reconnects", 0))
        self._carry(self._published, "", mesh.get("published", 0))
        if self._key_set is not None:
            self._carry(self._key_failures, "", self._key_set.failures)
        round_trips = getattr(self._mesh.mesh, "round_trips", None)
        while round_trips:
            self._ping.observe(round_trips.popleft())

    def render(self) -> tuple[bytes, str]:
        """The metrics as text, of all worker processes if there are several, and its content type."""
        registry: CollectorRegistry = self._registry
        if self._multiprocess:
            from prometheus_client import CollectorRegistry as Registry
            from prometheus_client.multiprocess import MultiProcessCollector

            _forget_dead_processes()
            registry = Registry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return self._render(registry), self._content_type

    async def run(self) -> None:
        """Collect now and then, and watch the event loop, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time() + COLLECT_INTERVAL
        while True:
            before = loop.time()
            await asyncio.sleep(LAG_INTERVAL)
            now = loop.time()
            self._lag.observe(max(now - before - LAG_INTERVAL, 0.0))
            if now >= due:
                due = now + COLLECT_INTERVAL
                self.collect()

    def _on_call_ended(self, service: str, code: str, seconds: float) -> None:
        self._calls.labels(service, code).inc()
        self._duration.observe(seconds)

    def _carry(self, counter: Counter, label: str, count: int) -> None:
        key = (counter, label)
        new = count - self._carried.get(key, 0)
        if new > 0:
            self._carried[key] = count
            (counter.labels(label) if label else counter).inc(new)

    def _connected(self) -> float:
        return 1.0 if self._mesh.connected else 0.0

    def _policy_broken(self) -> float:
        return 0.0 if self._policy_file is None or self._policy_file.problem is None else 1.0

    def _outbox_bytes(self) -> float:
        return sum(handler.outbox_size for handler in self._handlers.handlers)


def _forget_dead_processes() -> None:
    """Remove the gauges of worker processes that are no more, which would be added up for ever."""
    from prometheus_client.multiprocess import mark_process_dead

    for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not _is_running(pid):
            with contextlib.suppress(FileNotFoundError):  # another process was asked at the same time
                mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _is_running(pid: int) -> bool:
    if sys.platform == "win32":  # where a signal of 0 is none
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
