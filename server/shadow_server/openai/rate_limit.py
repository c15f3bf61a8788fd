"""A tenant's rates as OpenAI's headers, and refusals as answers.

Runs in: API process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from starlette.responses import Response

from shadow_server.errors import ApiError
from shadow_server.tenancy.refusal import Rate, RefusalError


def rate_headers(rates: Iterable[Rate]) -> dict[str, str]:
    """Return `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` of the rates that the tenant has."""
    headers = {}
    for rate in rates:
        headers[f"x-ratelimit-limit-{rate.unit}"] = str(rate.limit)
        headers[f"x-ratelimit-remaining-{rate.unit}"] = str(rate.remaining)
        headers[f"x-ratelimit-reset-{rate.unit}"] = spell_duration(rate.reset_seconds)
    return headers


def spell_duration(seconds: float) -> str:
    """Return a duration as OpenAI spells it, rounded up: `0s`, `120ms`, `8s`, `6m0s`, `1h0m5s`."""
    milliseconds = math.ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def refusal_response(refusal: RefusalError) -> Response:
    """Return the answer to a request that was not admitted.

    One that can never pass carries no Retry-After, and tells the client's library not to try again.
    """
    headers = rate_headers(refusal.rates)
    if refusal.retry_after_seconds is None:
        headers["x-should-retry"] = "false"
    else:
        headers["retry-after"] = str(refusal.retry_after_seconds)
    response = ApiError.of(refusal.code, refusal.message, headers=headers).response()
    if refusal.retry_after_seconds is None:
        del response.headers["retry-after"]
    return response
