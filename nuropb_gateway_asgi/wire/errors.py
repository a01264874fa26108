"""NuroPb's exceptions, for services that are not written with nuropb: on the mesh they are told by their names alone.

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
    """What a service raises on purpose: its text is for the caller."""


class NuropbValidationError(NuropbException):
    """The parameters are not acceptable."""


class NuropbAuthorizationError(NuropbException):
    """The caller may not do this."""


class NuropbAuthenticationError(NuropbException):
    """The caller's token is not accepted."""


class NuropbDeprecatedError(NuropbException):
    """The method is to be used no longer."""


class NuropbHandlingError(NuropbException):
    """The service could not fulfil the request."""


class NuropbTransportError(NuropbException):
    """The mesh could not be reached; the same call may succeed later."""
