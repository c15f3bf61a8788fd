"""Steps of the schema, applied when a catalog opens. A new one: `versions/<number>_<what>.py`, after the last.

Runs in: API process.
"""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from shadow_runtime.errors import ConfigError

# Alembic hands its context to `env.py` through one global.
_ALEMBIC = threading.Lock()


def upgrade(connection: Connection) -> None:
    """Bring the schema up to date, inside a transaction of the caller that no other process's migration overlaps.

    Raises:
        ConfigError: a newer release has changed the schema.
    """
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    steps = ScriptDirectory.from_config(config)
    applied = MigrationContext.configure(connection).get_current_heads()
    known = {step.revision for step in steps.walk_revisions()}
    if not known.issuperset(applied):
        raise ConfigError(
            f"the registry's database has schema {', '.join(applied)}, which a newer release made;"
            f" this one knows schemas up to {steps.get_current_head()}"
        )
    if list(applied) != steps.get_heads():
        with _ALEMBIC:
            command.upgrade(config, "head")
