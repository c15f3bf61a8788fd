"""The images' HEALTHCHECK: 0 when the server on this machine serves requests.

PORT names another port than 8000.
"""

import http.client
import os
import sys

TIMEOUT_SECONDS = 5


def main() -> int:
    """Ask /health/ready."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", int(os.environ.get("PORT", "8000")), timeout=TIMEOUT_SECONDS
    )
    try:
        connection.request("GET", "/health/ready")
        return 0 if connection.getresponse().status == 200 else 1
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
