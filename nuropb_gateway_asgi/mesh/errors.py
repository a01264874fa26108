"""NuroPb's errors, for services to raise: see :mod:`nuropb_gateway_asgi.wire.errors`."""

from ..wire.errors import (
    NuropbAuthenticationError,
    NuropbAuthorizationError,
    NuropbDeprecatedError,
    NuropbException,
    NuropbHandlingError,
    NuropbTransportError,
    NuropbValidationError,
)

__all__ = [
    "NuropbAuthenticationError",
    "NuropbAuthorizationError",
    "NuropbDeprecatedError",
    "NuropbException",
    "NuropbHandlingError",
    "NuropbTransportError",
    "NuropbValidationError",
]
