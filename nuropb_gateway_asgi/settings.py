"""Settings: the fields of one frozen class; each is also an environment variable ``NUROPB_GATEWAY_<NAME>``."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from .exceptions import SettingsError
from .identifiers import new_id
from .rates import parse_limit

__all__ = ["ENV_PREFIX", "Settings"]

logger = logging.getLogger(__name__)

ENV_PREFIX: Final = "NUROPB_GATEWAY_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: Without "{", which starts a parameter of a route.
_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
#: A name, an IPv4 address, or an IPv6 address in brackets; then a port.
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})")
#: http or https, a host, and the path of a prefix.
_PUBLIC_URL = re.compile(
    r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?"
)
_COOKIE_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ANY: Final = re.compile(r".+", re.DOTALL)
#: The parameters of an AMQP URL, with their values.
_MESH_PARAMETERS: Final = {
    "heartbeat": re.compile(r"[0-9]{1,4}"),
    "no_verify_ssl": re.compile(r"[01]"),
    "timeout": re.compile(r"[0-9]{1,9}"),
    "auth": re.compile(r"plain|external|amqplain", re.IGNORECASE),
    **dict.fromkeys(("cafile", "capath", "cadata", "certfile", "keyfile", "name"), _ANY),
}
_MESH_VALUES: Final = {
    "heartbeat": "whole seconds, from 0 (off) to 9999, as in heartbeat=30",
    "no_verify_ssl": "0, or 1 to accept every certificate",
    "timeout": "whole seconds",
    "auth": "plain, amqplain or external",
    **dict.fromkeys(("cafile", "capath", "cadata", "certfile", "keyfile", "name"), "a text that is not empty"),
}
#: A URL with several hosts: scheme and user, hosts, and the rest.
_HOSTS = re.compile(r"(amqps?://(?:[^/?#]*@)?)([^/?#@]*,[^/?#@]*)([/?#].*)?", re.DOTALL | re.IGNORECASE)
#: The start of an address that is a Unix socket.
UNIX_PREFIX: Final = "unix:"
#: The characters of a bearer token (RFC 6750, 2.1); 32 random ones cannot be guessed.
_ADMIN_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{32,1024}")
#: Variables that name a file with a secret, and the settings that they set.
_SECRET_FILES: Final = {"mesh_url_file": "mesh_url", "admin_token_file": "admin_token"}
_GIVEN_TWICE: Final = "given twice, as a value and as a file"


#: The process in which each random instance id was drawn.
_drawn_in: dict[str, int] = {}


def _draw_instance_id() -> str:
    instance_id = new_id()
    _drawn_in[instance_id] = os.getpid()
    return instance_id


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """All settings, with their defaults; times are in seconds, sizes in bytes.

    Raises :class:`SettingsError` for an invalid value. ``repr()`` shows neither keys nor passwords.
    """

    mesh_url: str = "embedded://demo"
    mesh_lane: Literal["fast", "plain"] = "fast"
    service_name: str = "nuropb-gateway"
    instance_id: str = dataclasses.field(default_factory=_draw_instance_id)
    path: str = "/ws"
    #: The gateway's URL for clients, where a proxy changes it; empty for the URL of each request.
    public_url: str = ""
    http: Literal["on", "off"] | None = None
    mcp: Literal["on", "off"] | None = None
    tcp: str = ""
    #: PEM files; without TCP_CERTIFICATE_KEY the certificate's file holds both.
    tcp_certificate: str = ""
    tcp_certificate_key: str = ""

    jwt_key: str = ""
    #: The file with ``jwt_key``; emptied once it is read, so that settings can be copied.
    jwt_key_file: str = ""
    jwt_algorithms: Sequence[str] = ()
    jwt_jwks_url: str = ""
    jwt_oidc_issuer: str = ""
    #: Whether keys may come by plain http from other machines.
    jwt_allow_http: Literal["off", "on"] = "off"
    jwt_issuer: str = ""
    jwt_audience: Sequence[str] = ()
    jwt_client_id: Sequence[str] = ()
    jwt_leeway: float = 10.0
    jwt_user_claim: str = "sub"
    jwt_username_claim: str = "preferred_username"
    #: The file that keeps the key which the gateway makes for the embedded mesh; without it a key lasts for one run.
    development_key_file: str = ""
    #: A file with several issuers, each with its keys; it takes the place of all other JWT settings.
    jwt_issuers: str = ""

    expose: Sequence[str] | None = None
    expose_topics: Sequence[str] | None = None
    expose_tools: Sequence[str] | None = None
    #: The topics of events with a target. The broker cannot tell these events from others, so a process with
    #: connections gets every event of these topics.
    targeted_topics: Sequence[str] = ("#",)
    policy: str = ""
    allowed_origins: Sequence[str] | None = None
    auth_cookie: str = ""
    #: Headers that pages of other origins may send to the HTTP endpoints, beside those of the gateway and of tracing.
    cors_headers: Sequence[str] = ()

    request_timeout: float = 30.0
    request_timeout_max: float = 60.0
    max_message_size: int = 65536
    max_json_depth: int = 32
    max_in_flight: int = 64
    #: Calls of one user at one service; further calls of the user wait in the gateway.
    max_in_flight_per_service: int = 16
    rate_limit: str = "2000/s burst 10000"
    rate_limit_user: str = "5000/s burst 25000"
    max_connections: int = 10000
    max_connections_per_user: int = 100
    #: 0 is no limit: behind a proxy whose X-Forwarded-For is not trusted, all clients have the same address.
    max_connections_per_address: int = 0
    #: Seconds that a turn of the event loop may take before calls are refused; 0 is no limit.
    overload_delay: float = 0.05
    handshake_rate: str = "500/s burst 5000"
    handshake_rate_per_address: str = "50/s burst 1000"
    outbox_size: int = 1048576
    #: Seconds that a session outlives its connection; 0 for not at all.
    resume_window: float = 60.0
    #: Bytes of frames kept for a session, and for all sessions of a process that have no connection.
    resume_buffer: int = 262144
    resume_memory: int = 67108864
    #: Topic patterns whose events are kept, each with its time, as in "orders.#:1h".
    history: Sequence[str] = ()
    #: Events of the past that a subscription gets at most.
    history_max: int = 1000
    write_timeout: float = 10.0
    max_connection_lifetime: float = 86400.0
    auth_timeout: float = 10.0
    ping_interval: float = 25.0
    ping_timeout: float = 10.0
    drain_timeout: float = 10.0
    #: From SIGTERM to the drain: not ready any more, but clients are still admitted.
    shutdown_delay: float = 0.0
    #: Whether a uvicorn that another program starts gets the gateway's protocols, where it would use its own.
    server_protocols: Literal["on", "off"] = "on"

    console: Literal["auto", "on", "off"] = "auto"
    presence_events: Literal["off", "on"] = "off"
    error_details: Literal["nuropb", "all", "none"] | None = None
    #: Whether the log line about a call of an agent has the call's arguments.
    log_tool_arguments: Literal["off", "on"] = "off"
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    log_format: Literal["text", "json"] = "text"
    #: Spans for OpenTelemetry.
    tracing: Literal["off", "on"] = "off"
    #: A file in the place of log_level and log_format, as uvicorn's --log-config takes it.
    log_config: str = ""
    #: Lines about connections that have ended, and about calls.
    access_log: Literal["off", "connections", "calls"] = "off"
    #: Such lines a second, in each process; further ones are summed up.
    access_log_rate: int = 100
    #: The file of the audit log, or "-" for standard output; empty for none.
    audit_log: str = ""
    #: The address of the admin API: unix:/path, or host:port; empty for none.
    admin_listen: str = ""
    admin_token: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _checked(field.name, _TYPES[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if self.jwt_key_file:
            if self.jwt_key:
                raise _refusal("jwt_key", _GIVEN_TWICE, "one of the two")
            object.__setattr__(self, "jwt_key", _read_secret("jwt_key_file", self.jwt_key_file))
            object.__setattr__(self, "jwt_key_file", "")
        self._check()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from the environment (``os.environ`` by default).

        ``NUROPB_GATEWAY_JWT_KEY_FILE``, ``NUROPB_GATEWAY_MESH_URL_FILE`` and ``NUROPB_GATEWAY_ADMIN_TOKEN_FILE`` name a
        file to read the secret from; one line break at the end of the file is not part of the secret. An empty variable
        counts as not set; for a list it is an empty list. Variables that name no setting are ignored (Kubernetes sets
        some with this prefix for a service called nuropb-gateway), with a warning for those that look like a misspelt
        setting.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for variable, text in environ.items():
            if not variable.startswith(ENV_PREFIX):
                continue
            name = variable.removeprefix(ENV_PREFIX).lower()
            if name in _SECRET_FILES:
                if text:
                    _set_once(values, _SECRET_FILES[name], _read_secret(name, text))
            elif name not in _TYPES:
                _warn_if_misspelt(variable, name)
            elif text or _is_list(_TYPES[name]):
                _set_once(values, name, text)
        return cls(**values)

    @property
    def embedded(self) -> bool:
        """Whether the mesh runs in this process."""
        return self.mesh_url.startswith("embedded://")

    @property
    def makes_key(self) -> bool:
        """Whether the gateway makes a key for development itself: on the embedded mesh, where no setting names one."""
        return self.embedded and not (self.jwt_key or self.jwt_jwks_url or self.jwt_oidc_issuer or self.jwt_issuers)

    @property
    def has_console(self) -> bool:
        """Whether the console is served; by default only with the embedded mesh."""
        return self.console == "on" or (self.console == "auto" and self.embedded)

    @property
    def serves_http(self) -> bool:
        """Whether calls and events over HTTP are on."""
        return self.http == "on" or (self.http is None and self.embedded)

    @property
    def serves_mcp(self) -> bool:
        """Whether tools for agents are on; by default only with the embedded mesh."""
        return self.mcp == "on" or (self.mcp is None and self.embedded)

    @property
    def shown_errors(self) -> Literal["nuropb", "all", "none"]:
        """The error texts of services that clients get; by default all of them with the embedded mesh alone."""
        return self.error_details or ("all" if self.embedded else "nuropb")

    @property
    def admin_address(self) -> str | tuple[str, int] | None:
        """The path of the admin API's Unix socket, or its host and port, or None."""
        if self.admin_listen.startswith(UNIX_PREFIX):
            return self.admin_listen.removeprefix(UNIX_PREFIX)
        match = _ADDRESS.fullmatch(self.admin_listen)
        return None if match is None else (match[1] or match[2], int(match[3]))

    @property
    def tcp_address(self) -> tuple[str, int] | None:
        """The host and port of TCP, or None."""
        match = _ADDRESS.fullmatch(self.tcp)
        return None if match is None else (match[1] or match[2], int(match[3]))

    def renew_instance_id(self) -> None:
        """Draw a random instance id anew if this process is a fork of the one that drew it. A given id stays."""
        if _drawn_in.get(self.instance_id, os.getpid()) != os.getpid():
            self.take_instance_id(_draw_instance_id())

    def take_instance_id(self, instance_id: str) -> None:
        """Change the instance id, for the gateway before it starts: all of its parts share these settings."""
        object.__setattr__(self, "instance_id", instance_id)

    def __repr__(self) -> str:
        shown = (
            f"{field.name}={self._shown(field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) not in (field.default, ())
        )
        return f"Settings({', '.join(shown)})"

    def shown(self) -> dict[str, Any]:
        """Return all settings for an operator, without keys and passwords."""
        return {field.name: self._shown(field.name) for field in dataclasses.fields(self)}

    def _shown(self, name: str) -> Any:
        value = getattr(self, name)
        if name in ("jwt_key", "admin_token"):
            return "<hidden>" if value else ""
        return hide_password(value) if isinstance(value, str) and "://" in value else value

    def _mesh_parts(self) -> tuple[str, str | None]:
        """Return the scheme and the host of the mesh. Errors give no details, which could quote the password."""
        scheme, host = "", None
        for url in host_urls(self.mesh_url):
            try:
                parts = urlsplit(url)
                # A password with one of "/?#" would end the host early, and appear in a log as a part of the path.
                # User and password come once, before the first host; those of another host would be a part of this one.
                misplaced = "@" in parts.path + parts.query + parts.fragment
                misplaced = misplaced or "," in (parts.password or "").partition("@")[2]
                well = parts.port != 0 and not misplaced and url.isprintable() and " " not in url
                scheme, host = parts.scheme, parts.hostname
            except ValueError:
                well = False
            if not well:
                hosts = "one:5672,two:5672" if "," in self.mesh_url else "host:5672"
                expected = f"amqp://user:password@{hosts}/vhost, with special characters percent-encoded"
                raise _refusal("mesh_url", "not a URL", expected)
            if not host:
                break
        return scheme, host

    def _check(self) -> None:
        scheme, host = self._mesh_parts()
        if scheme not in ("amqp", "amqps", "embedded"):
            raise _refusal("mesh_url", "unknown scheme", "amqp://, amqps:// or embedded://demo")
        if scheme == "embedded" and self.mesh_url != "embedded://demo":
            raise _refusal("mesh_url", "unknown embedded mesh", "embedded://demo")
        if scheme != "embedded" and not host:
            raise _refusal("mesh_url", "no host", "amqp://user:password@host:5672/vhost")
        _check_mesh_parameters(self.mesh_url)
        for name in ("service_name", "instance_id"):
            if not _NAME.fullmatch(getattr(self, name)):
                raise _refusal(
                    name, "not a name", "1 to 100 letters, digits, '.', '_' or '-', beginning with a letter or digit"
                )
        if not _PATH.fullmatch(self.path):
            raise _refusal("path", "not a path", "a slash, and then characters of a URL's path, as in /ws")
        if self.public_url and not _PUBLIC_URL.fullmatch(self.public_url):
            raise _refusal("public_url", "not a URL of clients", "https://host[:port][/prefix]")
        if self.auth_cookie and not _COOKIE_NAME.fullmatch(self.auth_cookie):
            raise _refusal("auth_cookie", "not a cookie name", "a token of RFC 6265, such as Authorization")
        if not all(map(_COOKIE_NAME.fullmatch, self.cors_headers)):  # both kinds of names are tokens of RFC 9110
            raise _refusal("cors_headers", "not a list of header names", "names with commas, as in X-Request-Id")
        if self.auth_cookie and "*" in (self.allowed_origins or ()):
            raise _refusal(
                "allowed_origins",
                "'*' together with AUTH_COOKIE would let any page act for its visitors",
                "a list of origins",
            )
        if self.tcp and (self.tcp_address is None or self.tcp_address[1] > 65535):
            raise _refusal("tcp", "not an address", "host:port, as in 127.0.0.1:8001 or [::1]:8001")
        self._check_admin()
        for name in ("expose", "expose_topics", "expose_tools"):
            if self.policy and getattr(self, name):
                raise _refusal(
                    name,
                    "set together with POLICY, and would allow more than the file says",
                    "one of the two; the same patterns can be a [[rule]] in the file",
                )
        for field in dataclasses.fields(self) if self.jwt_issuers else ():
            name = field.name
            if name.startswith("jwt_") and name != "jwt_issuers" and getattr(self, name) not in (field.default, ""):
                raise _refusal(
                    name,
                    "set together with JWT_ISSUERS, whose file has it for each issuer",
                    f"{name.removeprefix('jwt_')} in that file, or no JWT_ISSUERS",
                )
        for name in ("rate_limit", "rate_limit_user", "handshake_rate", "handshake_rate_per_address"):
            try:
                parse_limit(getattr(self, name))
            except ValueError as error:
                raise _refusal(name, str(error), "a rate such as 200/s or 200/s burst 400, or off") from error
        if self.request_timeout > self.request_timeout_max:
            self._reconcile_timeouts()

    def _check_admin(self) -> None:
        address = self.admin_address
        well = not self.admin_listen
        if isinstance(address, str):
            well = address.startswith("/") and address.isprintable()
        elif address is not None:
            well = 0 < address[1] < 65536
        if not well:
            raise _refusal(
                "admin_listen", "not an address", "unix:/path/of/a/socket, or host:port as in 127.0.0.1:9100"
            )
        if self.admin_token and not _ADMIN_TOKEN.fullmatch(self.admin_token):
            fact = "too short, or with characters that a header cannot have"
            raise _refusal("admin_token", fact, "a secret of 32 to 1024 letters, digits or -._~+/=")
        if isinstance(address, tuple) and not self.admin_token:
            raise _refusal("admin_token", "not set, and ADMIN_LISTEN is a port", "a secret of 32 characters or more")

    def _reconcile_timeouts(self) -> None:
        """Adapt REQUEST_TIMEOUT to REQUEST_TIMEOUT_MAX, or the reverse, where only one of them was set."""
        if self.request_timeout == Settings.request_timeout:
            object.__setattr__(self, "request_timeout", self.request_timeout_max)
        elif self.request_timeout_max == Settings.request_timeout_max:
            object.__setattr__(self, "request_timeout_max", self.request_timeout)
        else:
            raise _refusal("request_timeout", "exceeds REQUEST_TIMEOUT_MAX", f"at most {self.request_timeout_max}")


_TYPES: Final[dict[str, Any]] = typing.get_type_hints(Settings)
#: The minimums of numbers; all other numbers must be above 0.
_MINIMUM: Final = {
    "jwt_leeway": 0,
    "overload_delay": 0,
    "drain_timeout": 0,
    "shutdown_delay": 0,
    "max_message_size": 256,
    "max_json_depth": 3,
    "max_in_flight": 1,
    "max_in_flight_per_service": 1,
    "max_connections": 1,
    "max_connections_per_user": 1,
    "max_connections_per_address": 0,
    "outbox_size": 1024,
    "resume_window": 0,
    "resume_buffer": 1024,
    "resume_memory": 0,
    "history_max": 1,
    "access_log_rate": 1,
}
#: Seconds; the longest time that becomes an AMQP expiration.
_LONGEST_TIME: Final = 86400.0
_MAXIMUM: Final = {
    # A NuroPb 0.1.8 service crashes on JSON nested about 970 deep; the gateway's own envelope adds two levels.
    "max_json_depth": 256,
    "max_connection_lifetime": 30 * 86400.0,
    # A client may ask for as many; each is in memory until it is sent.
    "history_max": 100_000,
}


def _check_mesh_parameters(url: str) -> None:
    """Check the query of a mesh's URL: aiormq takes a wrong heartbeat for none, and ``no_verify_ssl=false`` for on."""
    given = parse_qsl(url.partition("#")[0].partition("?")[2], keep_blank_values=True)
    if twice := [name for number, (name, _) in enumerate(given) if name in dict(given[:number])]:
        raise _refusal("mesh_url", f"{twice[0]}: given twice", "each parameter once")
    for name, value in given:
        expected = _MESH_PARAMETERS.get(name)
        if expected is None:
            similar = difflib.get_close_matches(name, _MESH_PARAMETERS, n=1, cutoff=0.6)
            meant = f"; is {similar[0]} meant?" if similar else ""
            logger.warning("%sMESH_URL: %s is not a parameter and is ignored%s", ENV_PREFIX, ascii(name), meant)
        elif not expected.fullmatch(value):
            raise _refusal("mesh_url", f"{name}: not a valid value", _MESH_VALUES[name])


def host_urls(url: str) -> tuple[str, ...]:
    """Return a URL for each of the comma-separated hosts of ``url``, each with its own port and with the other parts.

    A URL with one host is returned unchanged.
    """
    match = _HOSTS.fullmatch(url)
    if match is None:
        return (url,)
    start, hosts, end = match.groups(default="")
    return tuple(f"{start}{host}{end}" for host in hosts.split(","))


def hide_password(url: str) -> str:
    """Return ``url`` for a log, with its password replaced; a text that is not a URL is replaced as a whole."""
    match = _HOSTS.fullmatch(url)
    if match is not None:  # urlsplit takes a comma for a part of the port, and refuses several addresses in brackets
        start, hosts, end = match.groups(default="")
        return hide_password(f"{start}host{end}").replace("@host", f"@{hosts}", 1) if "@" in start else url
    try:
        parts = urlsplit(url)
    except ValueError:
        return "<hidden>"
    if parts.password is None:
        return url
    netloc = parts.netloc.replace(f":{parts.password}@", ":***@")
    return urlunsplit(parts._replace(netloc=netloc))


def _refusal(name: str, fact: str, expected: str) -> SettingsError:
    return SettingsError(f"{ENV_PREFIX}{name.upper()}: {fact}; expected {expected}")


def _set_once(values: dict[str, Any], name: str, value: str) -> None:
    if name in values:
        raise _refusal(name, _GIVEN_TWICE, "one of the two")
    values[name] = value


def _read_secret(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, ValueError) as error:
        fact = f"the file cannot be read ({type(error).__name__})"
        raise _refusal(name, fact, "the name of a readable text file") from error


def _warn_if_misspelt(variable: str, name: str) -> None:
    similar = difflib.get_close_matches(name, _TYPES, n=1, cutoff=0.85)
    if similar:
        meant = f"{ENV_PREFIX}{similar[0].upper()}"
        logger.warning("%s is not a setting and is ignored; is %s meant?", variable, meant)


def _is_list(type_: Any) -> bool:
    type_ = _without_none(type_)
    return type_ not in (str, int, float) and typing.get_origin(type_) is not Literal


def _without_none(type_: Any) -> Any:
    """Return the type of a setting without None, which stands for a default that depends on the mesh."""
    if typing.get_origin(type_) not in (types.UnionType, typing.Union):
        return type_
    (given,) = (each for each in typing.get_args(type_) if each is not types.NoneType)
    return given


def _checked(name: str, type_: Any, value: Any) -> Any:
    if value is None and _without_none(type_) is not type_:
        return None
    type_ = _without_none(type_)
    if typing.get_origin(type_) is Literal:
        value = value.lower() if isinstance(value, str) else value
        if value not in typing.get_args(type_):
            raise _refusal(name, "unknown choice", f"one of {', '.join(typing.get_args(type_))}")
        return value
    if type_ is str:
        if not isinstance(value, str):
            raise _refusal(name, f"a value of type {type(value).__name__}", "a string")
        return value
    if type_ in (int, float):
        return _checked_number(name, type_, value)
    return _checked_list(name, value)


def _checked_list(name: str, value: Any) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, Sequence) or not all(isinstance(item, str) for item in items):
        raise _refusal(name, "not a list of strings", "a list, comma-separated in the environment")
    return tuple(item.strip() for item in items if item.strip())


def _checked_number(name: str, type_: type[int] | type[float], value: Any) -> int | float:
    kind = "a whole number" if type_ is int else "a number of seconds"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _refusal(name, f"a value of type {type(value).__name__}", kind)
    try:
        number = type_(value)
    except (ValueError, OverflowError) as error:
        raise _refusal(name, "not a number", kind) from error
    if type_ is int and isinstance(value, float) and number != value:
        raise _refusal(name, "not a whole number", kind)
    minimum = _MINIMUM.get(name)
    maximum: float = math.inf if type_ is int else _LONGEST_TIME
    maximum = _MAXIMUM.get(name, maximum)
    if minimum is None and not 0 < number <= maximum:
        raise _refusal(name, f"{number} is out of range", f"{kind} above 0 and up to {maximum:g}")
    if minimum is not None and not minimum <= number <= maximum:
        limits = f" from {minimum} to {maximum:g}" if maximum < math.inf else f", {minimum} or more"
        raise _refusal(name, f"{number} is out of range", f"{kind}{limits}")
    return number
