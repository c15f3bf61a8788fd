"""Writes docs/errors.md: `python -m shadow_server.errors_document > docs/errors.md`.

Runs in: a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from shadow_server.errors import CODE_RULES, ErrorRule

_HEAD = """\
# Errors

Made from the table in `server/shadow_server/errors.py` by `python -m shadow_server.errors_document > docs/errors.md`;
a test compares the two. Every error that leaves the server has one shape:

```json
{"error": {"message": "No adapter 'a'", "type": "invalid_request_error", "param": null, "code": "adapter_not_found"}}
```

`message` is one sentence for people and may change; `code` is stable. The header `x-should-retry` says whether the same
request may succeed later, which the official OpenAI clients follow. Every 429 and 503 carries `Retry-After` in seconds.
In an event stream that has begun, the same object comes as an event and the stream ends with `data: [DONE]`. The engine
may use codes of its own beside these.

| status | code | type | retry | meaning |
|---|---|---|---|---|
"""


def render_errors(rules: Iterable[ErrorRule]) -> str:
    """Return the document of `rules`, by status and code."""
    return _HEAD + "".join(_row(rule) for rule in sorted(rules, key=_order))


def _order(rule: ErrorRule) -> tuple[int, str]:
    return rule.status, rule.code


def _row(rule: ErrorRule) -> str:
    retry = "yes" if rule.is_retryable else "no"
    return f"| {rule.status} | `{rule.code}` | `{rule.type}` | {retry} | {rule.meaning} |\n"


if __name__ == "__main__":
    sys.stdout.write(render_errors(CODE_RULES.values()))
