"""May they? Policies, rules, the policy file, and the explanation of a decision.

``policies`` decides; ``rules`` are its material; ``syntax`` reads a file of rules and ``policy_file`` watches it;
``explain`` tells an operator why a token may or may not do something.
"""

from __future__ import annotations

from .policies import (
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
from .rules import escape_word

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
