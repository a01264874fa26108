"""How does a caller learn its permissions? By documents: AsyncAPI, OpenAPI and generated clients.

* ``model`` is the contract of one caller: services, methods and topics.
* ``asyncapi`` (with ``frames``) and ``openapi`` write the contract as documents.
* ``endpoints`` serves the documents.
* ``clients`` generates typed clients from them.
* ``compare`` finds the differences between the contract of a client and the services of now.
"""

from __future__ import annotations

from .asyncapi import asyncapi_document
from .model import Contract, contract_for
from .openapi import openapi_document

__all__ = ["Contract", "asyncapi_document", "contract_for", "openapi_document"]
