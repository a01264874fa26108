"""One module per kind of connection; each implements :class:`~nuropb_gateway_asgi.handler_manager.Handler`."""
