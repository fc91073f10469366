"""Trying again: when, how often, after which pause, and how much of it in all."""

from lbclient.retrying.budget import Budget, Ledger
from lbclient.retrying.pushback import retry_after
from lbclient.retrying.retries import Retries
from lbclient.retrying.retry import Retry

__all__ = ["Budget", "Ledger", "Retries", "Retry", "retry_after"]
