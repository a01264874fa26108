"""What a monitoring system asks for, in Prometheus' format; needs ``prometheus-client`` (the extra ``metrics``).

Only the end of a call is counted as it happens. Everything else is counted anyway, in plain integers, and carried over
when somebody asks, or every few seconds: with several worker processes (``PROMETHEUS_MULTIPROC_DIR`` set, see
prometheus-client) whichever of them is asked answers for all.

Label values are names that the operator or a service chose, never what a client sent. What each kind of connection has
for itself has the label ``transport``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..authentication.key_sets import KeySet
from ..authorization.policy_file import PolicyFile
from ..connection_kind import ConnectionKind

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter

__all__ = ["Metrics"]

#: Seconds between two collections when nobody asks.
COLLECT_INTERVAL: Final = 5.0
#: Seconds between two looks at how late the event loop is.
LAG_INTERVAL: Final = 0.5
_DURATIONS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LAGS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)


#: Name, text and value of what each kind of connection has.
_CHANNEL_GAUGES: Final[Sequence[tuple[str, str, Callable[[ConnectionKind], float]]]] = (
    ("connections", "Registered connections", lambda each: len(each.handler_manager)),
    ("in_flight", "Calls without an answer yet", lambda each: each.service_mesh_manager.in_flight),
    ("mesh_connected", "Processes that the mesh is connected to", lambda each: each.service_mesh_manager.connected),
    ("open_circuits", "Services that do not answer", lambda each: len(each.service_mesh_manager.open_circuits)),
    ("outbox_bytes", "Bytes that wait for clients", lambda each: each.outbox_size),
)


class Metrics:
    """The metrics of one gateway."""

    def __init__(
        self, channels: Collection[ConnectionKind], policy_file: PolicyFile | None = None, key_set: KeySet | None = None
    ) -> None:
        import prometheus_client as prometheus

        self._channels = channels
        self._policy_file = policy_file
        self._key_set = key_set
        self._render = prometheus.exposition.generate_latest
        self._content_type = prometheus.CONTENT_TYPE_LATEST
        self._registry = registry = prometheus.CollectorRegistry()
        self._multiprocess = "PROMETHEUS_MULTIPROC_DIR" in os.environ

        def counter(name: str, text: str, *labels: str) -> Counter:
            return prometheus.Counter(f"nuropb_gateway_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, mode: Any = "livesum", labels: tuple[str, ...] = ()) -> Any:
            return prometheus.Gauge(f"nuropb_gateway_{name}", text, labels, registry=registry, multiprocess_mode=mode)

        self._calls = counter("requests", "Calls that ended, by service and code", "service", "code", "transport")
        self._duration = prometheus.Histogram(
            "nuropb_gateway_request_duration_seconds",
            "From a call's frame to its answer",
            ("transport",),
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
            (gauge("policy_broken", "Processes in which the policy file is not in force"), self._policy_broken),
        ]
        for name, text, value in _CHANNEL_GAUGES:
            by_transport = gauge(name, text, labels=("transport",))
            self._gauges += [(by_transport.labels(each.name), functools.partial(value, each)) for each in channels]
        self._refused = counter("handshakes_refused", "Handshakes refused, by reason", "reason", "transport")
        self._closed = counter(
            "connections_closed", "Connections that the gateway closed, by code", "code", "transport"
        )
        self._dropped = counter("dropped", "Replies and events dropped, by reason", "reason", "transport")
        self._reconnects = counter("mesh_reconnects", "Connections to the broker made anew", "transport")
        self._events = counter("events", "Events that came from the mesh", "transport")
        self._limited = counter("rate_limited", "Frames over a rate limit, by whose", "scope", "transport")
        self._ended = counter("subscriptions_ended", "Subscriptions that the policy ended", "transport")
        self._reloads = counter("policy_reloads", "Times that the policy file was loaded again", "result")
        self._published = counter("published", "Messages given to the broker", "transport")
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
        self._carried: dict[tuple[Counter, tuple[str, ...]], int] = {}
        for channel in channels:
            channel.service_mesh_manager.calls.on_call_ended = functools.partial(self._on_call_ended, channel.name)

    @classmethod
    def create(
        cls, channels: Collection[ConnectionKind], policy_file: PolicyFile | None = None, key_set: KeySet | None = None
    ) -> Metrics | None:
        """The metrics, or None where prometheus-client is not installed."""
        try:
            return cls(channels, policy_file, key_set)
        except ModuleNotFoundError:
            return None

    def collect(self) -> None:
        """Carry over what was counted elsewhere."""
        for gauge, value in self._gauges:
            gauge.set(value())
        for channel in self._channels:
            self._collect_channel(channel)
        if self._policy_file is not None:
            for result, count in self._policy_file.reloads.items():
                self._carry(count, self._reloads, result)
        if self._key_set is not None:
            self._carry(self._key_set.failures, self._key_failures)

    def _collect_channel(self, channel: ConnectionKind) -> None:
        handlers, manager, name = channel.handler_manager, channel.service_mesh_manager, channel.name
        for reason, count in handlers.statistics.refused.items():
            self._carry(count, self._refused, reason, name)
        for code, count in handlers.statistics.closed.items():
            self._carry(count, self._closed, str(code), name)
        for scope, count in handlers.statistics.limited.items():
            self._carry(count, self._limited, scope, name)
        statistics = manager.statistics
        mesh: dict[str, Any] = {}
        if hasattr(manager.mesh, "statistics"):
            mesh = msgspec.structs.asdict(manager.mesh.statistics)
        for reason, count in (
            ("late_reply", statistics.late_replies),
            ("double_reply", statistics.double_replies),
            ("unknown_reply", statistics.unknown_replies),
            ("abandoned_call", statistics.abandoned),
            ("oversized_event", statistics.oversized_events),
            ("controller_event", statistics.dropped_controller_events),
            ("slow_client_event", handlers.statistics.lost_events),
            ("bad_reply", mesh.get("dropped_replies", 0)),
            ("bad_event", mesh.get("dropped_events", 0)),
            ("repeated_event", mesh.get("repeated_events", 0)),
            ("expired_unsent", mesh.get("expired_unsent", 0)),
        ):
            self._carry(count, self._dropped, reason, name)
        self._carry(statistics.events, self._events, name)
        self._carry(statistics.denied_subscriptions, self._ended, name)
        self._carry(mesh.get("reconnects", 0), self._reconnects, name)
        self._carry(mesh.get("published", 0), self._published, name)
        round_trips = getattr(manager.mesh, "round_trips", None)
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

    def _on_call_ended(self, transport: str, service: str, code: str, seconds: float) -> None:
        self._calls.labels(service, code, transport).inc()
        self._duration.labels(transport).observe(seconds)

    def _carry(self, count: int, counter: Counter, *labels: str) -> None:
        key = (counter, labels)
        new = count - self._carried.get(key, 0)
        if new > 0:
            self._carried[key] = count
            (counter.labels(*labels) if labels else counter).inc(new)

    def _policy_broken(self) -> float:
        return 0.0 if self._policy_file is None or self._policy_file.problem is None else 1.0


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
