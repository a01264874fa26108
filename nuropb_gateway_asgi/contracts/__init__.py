"""What may one caller do, as documents? AsyncAPI, OpenAPI and generated clients.

``model`` is the contract of one caller; ``asyncapi`` and ``openapi`` write it down; ``endpoints`` serves these
documents; ``clients`` generates typed clients from them.
"""

from __future__ import annotations

from .asyncapi import asyncapi_document
from .model import Contract, contract_for
from .openapi import openapi_document

__all__ = ["Contract", "asyncapi_document", "contract_for", "openapi_document"]
