"""May they? Policies decide what each client may call and subscribe to.

* ``policy``: the questions that the gateway asks, for policies of any kind
* ``rule_policy``: the policy of rules; ``expose_policy``: that of the settings ``EXPOSE`` and ``EXPOSE_TOPICS``
* ``authorizer``: a function of the host application with the last word
* ``rules``, ``patterns``, ``claims``: a rule, its patterns of methods and topics, its conditions on claims
* ``precedence``, ``decisions``: the stronger of two rules; decisions with reasons
* ``policy_file``: the file of rules on disk, watched for changes; ``syntax``, ``toml_lines``: its content
* ``explain``: why a token may or may not do something, for operators
"""

from __future__ import annotations

from .authorizer import AuthorizedPolicy, Authorizer
from .decisions import Considered, Decision
from .expose_policy import ExposePolicy
from .patterns import escape_word
from .policy import CallVerdict, Policy, completed
from .rule_policy import RulePolicy

__all__ = [
    "AuthorizedPolicy",
    "Authorizer",
    "CallVerdict",
    "Considered",
    "Decision",
    "ExposePolicy",
    "Policy",
    "RulePolicy",
    "completed",
    "escape_word",
]
