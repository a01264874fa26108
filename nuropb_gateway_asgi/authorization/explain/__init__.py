"""Explanations for operators: why a token may call a method or subscribe to a topic, or why not."""

from __future__ import annotations

from .explanation import explain, render

__all__ = ["explain", "render"]
