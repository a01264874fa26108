"""A generator of typed clients: reads a gateway's AsyncAPI document, and returns the source text of a module. Pure.

``python`` and ``typescript`` write the module; ``model`` reads the document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from .model import DocumentError, read_document
from .python import write_python
from .typescript import write_typescript

__all__ = ["DocumentError", "Language", "generate_client"]

Language: TypeAlias = Literal["ts", "py"]


def generate_client(document: Mapping[str, Any], lang: Language) -> str:
    """Return the source text of a client module in ``lang``, for the gateway's AsyncAPI document.

    The same document gives the same text. Raises DocumentError if the document is not a gateway's, and ValueError for
    another language.
    """
    model = read_document(document)
    if lang == "ts":
        return write_typescript(model)
    if lang == "py":
        return write_python(model)
    raise ValueError(f"lang: unknown language {lang!r}; expected ts or py")
