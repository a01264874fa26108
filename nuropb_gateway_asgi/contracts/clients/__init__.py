"""A typed client of a caller's contract, as source text: an AsyncAPI document in, a module out. Pure.

One module for each language; :mod:`.model` is what they have in common.
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
    """The source text of a module for ``lang``, made of the gateway's AsyncAPI document.

    The same document gives the same text. Raises DocumentError for what is no such document, and ValueError for
    another language.
    """
    model = read_document(document)
    if lang == "ts":
        return write_typescript(model)
    if lang == "py":
        return write_python(model)
    raise ValueError(f"lang: there is no {lang!r}; allowed is ts or py")
