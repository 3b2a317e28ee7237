"""How the feedback store's schema grew (Alembic). `rlhf_lab.database` says what it is now and calls `upgrade`.

A new step: a file in versions/ beside the others, the tables in database.py changed to match, `SCHEMA` raised.
"""

from __future__ import annotations

import threading

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

_ONE_AT_A_TIME = threading.Lock()  # Alembic keeps the migration that runs in a global variable


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "rlhf_lab:migrations")
    return config


def known_versions() -> set[str]:
    """The versions that this RLHF Lab has a migration to."""
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def upgrade(connection: sa.Connection, present: str | None) -> None:
    """From version `present` (None: an empty database) to the newest, inside the connection's transaction."""
    config = _config()
    config.attributes["connection"] = connection
    with _ONE_AT_A_TIME:
        if present is not None:
            command.stamp(config, present)  # a store of the first version does not say so itself
        command.upgrade(config, "head")
