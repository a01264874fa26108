"""May they? Policies, rules, the policy file, and the explanation of a decision.

``policies`` decides; ``rules`` are its material; ``syntax`` reads a file of rules and ``policy_file`` watches it;
``explain`` tells an operator why a token may or may not do something.
"""

from __future__ import annotations

from .patterns import escape_word
from .rule_policy import (
    AuthorizedPolicy,
    Authorizer,
    CallVerdict,
    Considered,
    Decision,
    ExposePolicy,
    Policy,
    RulePolicy,
    completed,
)

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
