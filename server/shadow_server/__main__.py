"""`python -m shadow_server` is `shadowserve`.

Runs in: API process.
"""

import sys

from shadow_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
