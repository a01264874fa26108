"""Explanations for operators: why a token may call a method or subscribe to a topic, or why not.

* ``explanation``: all steps of a client's call, and its outcome; ``token``, ``mesh``: the first and the last step
* ``text``: an explanation as text for a terminal
"""

from __future__ import annotations

from .explanation import explain
from .text import render

__all__ = ["explain", "render"]
