"""Full logging: a Python process with this directory on its path logs all records of all loggers."""

from __future__ import annotations

import logging

logging.basicConfig(level=1, format="%(levelname)s %(name)s %(message)s")
