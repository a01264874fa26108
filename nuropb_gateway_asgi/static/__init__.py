"""Which files do pages load, and how do browsers keep them? Files of the package, and answers with entity tags."""

from __future__ import annotations

from .assets import Asset, is_asset, read_asset, serve_asset
from .entity_tags import entity_tag, tagged_response

__all__ = ["Asset", "entity_tag", "is_asset", "read_asset", "serve_asset", "tagged_response"]
