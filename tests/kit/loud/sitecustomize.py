"""With this directory on its path, a Python process logs everything that anybody in it has to say."""

from __future__ import annotations

import logging

logging.basicConfig(level=1, format="%(levelname)s %(name)s %(message)s")
