"""NuroPb's exceptions, for services that are not written with nuropb. On the mesh only their names count.

nuropb itself cannot be installed on Python 3.12 and newer.
"""

from __future__ import annotations

__all__ = [
    "NuropbAuthenticationError",
    "NuropbAuthorizationError",
    "NuropbDeprecatedError",
    "NuropbException",
    "NuropbHandlingError",
    "NuropbTransportError",
    "NuropbValidationError",
]


class NuropbException(Exception):
    """An exception that a service raises on purpose, with a text for the caller."""


class NuropbValidationError(NuropbException):
    """The parameters are not acceptable."""


class NuropbAuthorizationError(NuropbException):
    """The caller may not do this."""


class NuropbAuthenticationError(NuropbException):
    """The caller's token is not accepted."""


class NuropbDeprecatedError(NuropbException):
    """The method is deprecated."""


class NuropbHandlingError(NuropbException):
    """The service could not fulfil the request."""


class NuropbTransportError(NuropbException):
    """The mesh could not be reached; the same call may succeed later."""
