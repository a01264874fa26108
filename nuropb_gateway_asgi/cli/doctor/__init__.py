"""The command ``doctor``: why can a client not use a gateway?

* ``command``: the options, and the output;
* ``steps``: the steps from the URL to a call, in their order;
* ``probes``: the connections and HTTP requests that the steps make;
* ``findings``: what a step has found, and how to fix it;
* ``network_findings``: findings about URL, DNS, TCP, TLS, HTTP and clocks;
* ``token_findings``: findings about the token, by its claims;
* ``gateway_findings``: findings about handshake, hello, description, calls and subscriptions.
"""

from __future__ import annotations

from .command import doctor

__all__ = ["doctor"]
