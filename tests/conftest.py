"""Fixtures that several test files use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from postgres import Server, find_programs


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL server for the session; a test that kills it starts it again."""
    programs = find_programs()
    if programs is None:
        message = "no PostgreSQL: install it (Debian: apt install postgresql)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    server = Server(programs)
    yield server
    server.stop()


@pytest.fixture
def postgres(postgres_server: Server) -> str:
    """The URL of a fresh, empty PostgreSQL database."""
    return postgres_server.new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path) -> str:
    """The URL of a fresh database, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'feedback.db'}"
    return request.getfixturevalue("postgres")
