"""The command line, started by ``python -m nuropb_gateway_asgi``."""

from __future__ import annotations

import sys

from .cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
