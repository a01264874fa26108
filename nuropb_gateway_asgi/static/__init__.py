"""Which files do pages load? ``client.js``, and how the package's files are served."""

from __future__ import annotations

from .assets import Asset, is_asset, is_known, read_asset, serve_asset

__all__ = ["Asset", "is_asset", "is_known", "read_asset", "serve_asset"]
