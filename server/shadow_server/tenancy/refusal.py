"""Why a request is not admitted, as a value that knows no HTTP.

Runs in: API process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

RefusalCode = Literal["rate_limit_exceeded", "server_overloaded"]
RateUnit = Literal["requests", "tokens"]


@dataclass(frozen=True, slots=True)
class Rate:
    """Where a tenant stands with one of its rates.

    Attributes:
        unit: what is counted.
        limit: a minute.
        remaining: could be taken now.
        reset_seconds: until nothing of the limit is used, if nothing else comes.
    """

    unit: RateUnit
    limit: int
    remaining: int
    reset_seconds: float


class RefusalError(Exception):
    """A request that must not reach the engine now.

    Attributes:
        code: `rate_limit_exceeded` when the tenant asks too much, `server_overloaded` when all do.
        message: one sentence for the caller.
        retry_after_seconds: whole seconds until the request would pass, 1 or more; None when it never can.
        rates: the tenant's rates.
    """

    def __init__(
        self, code: RefusalCode, message: str, wait_seconds: float, rates: tuple[Rate, ...] = ()
    ) -> None:
        """Make a refusal.

        Args:
            code: see the class.
            message: see the class.
            wait_seconds: until the request would pass; inf for never.
            rates: see the class.
        """
        super().__init__(message)
        self.code = code
        self.message = message
        is_final = math.isinf(wait_seconds)
        self.retry_after_seconds = None if is_final else max(1, math.ceil(wait_seconds))
        self.rates = rates
