"""Factories of a gateway's parts, from its settings."""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Iterable, Iterator
from pathlib import Path

from .authentication import Authenticator, IssuersAuthenticator, JWTAuthenticator
from .authentication.development_key import kept_secret
from .authentication.issuer_file import IssuerTable, complete, read_issuer_file
from .authentication.key_sets import KeySet
from .authentication.keys import new_secret
from .authentication.origins import OriginPolicy
from .authorization import ExposePolicy, Policy
from .authorization.policy_file import PolicyFile
from .exceptions import PolicyError, SettingsError
from .loopback import is_loopback_host
from .mesh.demo import DemoService
from .mesh.embedded import EmbeddedMesh
from .settings import ENV_PREFIX, Settings
from .wire.history import KeptTopic, parse_kept_topics
from .wire.interface import Mesh

__all__ = [
    "make_authenticator",
    "make_history",
    "make_mesh",
    "make_origins",
    "make_policy",
    "make_tls",
    "naming_variables",
    "open_policy_file",
    "warn_of_settings",
]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def naming_variables() -> Iterator[None]:
    """Complete the name of a setting in errors of the parts to the name of its environment variable."""
    try:
        yield
    except SettingsError as error:
        if isinstance(error, PolicyError) or str(error).startswith(ENV_PREFIX):
            raise
        raise SettingsError(f"{ENV_PREFIX}{error}") from error


def make_authenticator(settings: Settings) -> tuple[Authenticator, str | None]:
    """Make the authenticator; return it with the secret for development if the settings name no key."""
    if settings.jwt_issuers:
        return _make_issuers(settings.jwt_issuers), None
    sources = [name for name in ("jwt_key", "jwt_jwks_url", "jwt_oidc_issuer") if getattr(settings, name)]
    if len(sources) > 1:
        first, second, *_ = (f"{ENV_PREFIX}{name.upper()}" for name in sources)
        raise SettingsError(f"{second}: {first} is set, too; expected one of JWT_KEY, JWT_JWKS_URL and JWT_OIDC_ISSUER")
    secret: str | None = None
    if not sources:
        if not settings.embedded:
            raise SettingsError(
                "NUROPB_GATEWAY_JWT_KEY: not set; expected a secret of at least 32 bytes (HS256), or a PEM "
                "public key (RS256, ES256, EdDSA), here or in the file named by NUROPB_GATEWAY_JWT_KEY_FILE; or "
                "NUROPB_GATEWAY_JWT_OIDC_ISSUER, NUROPB_GATEWAY_JWT_JWKS_URL or NUROPB_GATEWAY_JWT_ISSUERS in its place"
            )
        secret = kept_secret(Path(kept)) if (kept := settings.development_key_file) else new_secret()
    names = ("algorithms", "issuer", "audience", "client_id", "leeway", "user_claim", "username_claim")
    table = IssuerTable(
        key=secret or settings.jwt_key,
        jwks_url=settings.jwt_jwks_url,
        oidc_issuer=settings.jwt_oidc_issuer,
        allow_http=settings.jwt_allow_http == "on",
        **{name: getattr(settings, f"jwt_{name}") for name in names},
    )
    return _make_jwt_authenticator(table), secret


def _make_issuers(path: str) -> IssuersAuthenticator:
    authenticators = []
    for number, table in enumerate(read_issuer_file(path), 1):
        try:
            authenticators.append(_make_jwt_authenticator(table))
        except SettingsError as error:
            raise complete(str(error), path, number) from error
    return IssuersAuthenticator(authenticators)


def _make_jwt_authenticator(table: IssuerTable) -> JWTAuthenticator:
    algorithms = list(table.algorithms) or None
    key: str | KeySet = table.key
    if table.jwks_url:
        key = KeySet(table.jwks_url, algorithms=algorithms, allow_http=table.allow_http)
    elif table.oidc_issuer:
        key = KeySet(issuer=table.oidc_issuer, algorithms=algorithms, allow_http=table.allow_http)
    return JWTAuthenticator(
        key=key,
        algorithms=None if isinstance(key, KeySet) else algorithms,
        issuer=table.issuer or None,
        audience=table.audience or None,
        leeway=table.leeway,
        user_claim=table.user_claim,
        username_claim=table.username_claim,
        client_id=table.client_id or None,
        user_prefix=table.user_prefix or "",
    )


def open_policy_file(settings: Settings) -> PolicyFile | None:
    """Open the policy file, if the settings name one."""
    return PolicyFile(settings.policy, own_service=settings.service_name) if settings.policy else None


def make_policy(settings: Settings, policy_file: PolicyFile | None) -> Policy:
    """Make the policy of calls and subscriptions."""
    if policy_file is not None:
        return policy_file.policy
    expose, topics, tools = settings.expose, settings.expose_topics, settings.expose_tools
    if settings.embedded:
        expose = ("demo.*",) if expose is None else expose
        topics = ("demo.#",) if topics is None else topics
        tools = ("demo.*",) if tools is None else tools
    return ExposePolicy(expose or (), topics or (), tools or (), own_service=settings.service_name)


def make_history(settings: Settings, policy_file: PolicyFile | None) -> tuple[KeptTopic, ...]:
    """Return the topics whose events are kept."""
    in_file = () if policy_file is None else policy_file.history
    if not settings.history:
        return in_file
    if in_file:
        raise SettingsError("HISTORY: set together with history in the file of POLICY; expected one of the two")
    try:
        return parse_kept_topics(settings.history)
    except ValueError as error:
        raise SettingsError(f"HISTORY: {error}") from error


def make_origins(settings: Settings) -> OriginPolicy:
    """Make the policy of origins."""
    if settings.allowed_origins is None and settings.embedded:
        return OriginPolicy.loopback(own=settings.public_url)
    return OriginPolicy(settings.allowed_origins or (), own=settings.public_url)


def make_mesh(settings: Settings) -> Mesh:
    """Make the mesh."""
    if settings.embedded:
        return EmbeddedMesh({"demo": DemoService()}, service_name=settings.service_name)
    # Here, since the embedded mesh needs no library of AMQP: its imports are a sixth of a start.
    from .mesh.rabbitmq import RabbitMQMesh

    return RabbitMQMesh(
        settings.mesh_url,
        service_name=settings.service_name,
        instance_id=settings.instance_id,
        lane=settings.mesh_lane,
    )


def make_tls(settings: Settings) -> ssl.SSLContext | None:
    """Make the TLS context of TCP, if the settings name a certificate."""
    if not settings.tcp_certificate:
        if settings.tcp_certificate_key:  # a key without a certificate: an operator who wants TLS must not run without
            raise SettingsError(f"{ENV_PREFIX}TCP_CERTIFICATE: not set; expected the certificate of the key")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.options |= ssl.OP_NO_RENEGOTIATION  # or a client could ask for renegotiations without end
    try:
        # Without this OpenSSL would ask for a password, at the terminal.
        context.load_cert_chain(settings.tcp_certificate, settings.tcp_certificate_key or None, password="")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise SettingsError(
            f"{ENV_PREFIX}TCP_CERTIFICATE: unusable with its key ({reason}); expected PEM files of a "
            "certificate and its key, without a password"
        ) from error
    return context


def warn_of_settings(settings: Settings, policy: Policy, authenticator: Authenticator, secret: str | None) -> None:
    """Warn of settings that work but are probably mistakes."""
    address = settings.tcp_address
    if address is not None and not settings.tcp_certificate and not is_loopback_host(address[0]):
        logger.warning(
            "NUROPB_GATEWAY_TCP is open to the network without TLS, so tokens can be read on the way; set "
            "NUROPB_GATEWAY_TCP_CERTIFICATE, unless a proxy in front of it has TLS"
        )
    key_sets: Iterable[KeySet] = ()
    if isinstance(authenticator, IssuersAuthenticator):
        key_sets = authenticator.key_sets.values()
    elif isinstance(authenticator, JWTAuthenticator) and authenticator.key_set is not None:
        key_sets = [authenticator.key_set]
    if any(key_set.allow_http for key_set in key_sets):
        logger.warning(
            "NUROPB_GATEWAY_JWT_ALLOW_HTTP is on: every machine between the gateway and the provider of its keys can "
            "change the keys, and sign in as any user; use https where the network is not your own"
        )
    admin = settings.admin_address
    if isinstance(admin, tuple) and not is_loopback_host(admin[0]):
        logger.warning(
            "NUROPB_GATEWAY_ADMIN_LISTEN is open to the network, and has no TLS, so its token can be read on the way; "
            "listen at 127.0.0.1 or at a Unix socket, and reach it by ssh"
        )
    if not policy.exposes_anything:
        logger.warning(
            "nothing is exposed: clients can connect, but cannot call any service; set NUROPB_GATEWAY_EXPOSE, "
            "for example to 'orders.*,users.me', or name a file of rules in NUROPB_GATEWAY_POLICY"
        )
    if isinstance(authenticator, JWTAuthenticator) and secret is None:
        checks = {
            "JWT_ISSUER": settings.jwt_issuer or settings.jwt_oidc_issuer,
            "JWT_AUDIENCE": settings.jwt_audience or settings.jwt_client_id,
        }
        for name, value in checks.items():
            if not value:
                logger.warning("NUROPB_GATEWAY_%s is not set: tokens are not checked for it", name)
    elif isinstance(authenticator, IssuersAuthenticator):
        for each in authenticator.authenticators:
            if not each.checks_audience:
                logger.warning("NUROPB_GATEWAY_JWT_ISSUERS: tokens of %s are not checked for audience", each.issuer)
