"""Trying again: when, how often, after which pause, and how much of it in all."""

from lbclient.retrying.budget import Budget, Ledger
from lbclient.retrying.pushback import retry_after
from lbclient.retrying.replay import may_be_repeated
from lbclient.retrying.retries import Retries
from lbclient.retrying.retry import Retry

__all__ = ["Budget", "Ledger", "Retries", "Retry", "may_be_repeated", "retry_after"]
