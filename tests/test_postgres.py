"""What is PostgreSQL's own about the store: servers that refuse, restart or run full, and replies that get lost."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import replace

import psycopg
import pytest
import sqlalchemy as sa
from postgres import Server, find_programs
from small_disk import fill, small_disk
from test_store import answer, question

from rlhf_lab.store import FeedbackStore, StoreError


@contextmanager
def administrator(url: str):
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        yield connection


def as_user(url: str, user: str) -> str:
    return url.replace("postgres@", f"{user}@")


# --- what it says when it cannot be used ---


@pytest.fixture
def roles(postgres):
    """The URL of an empty database, and roles that may do less than all."""
    with administrator(postgres) as connection:
        for role, options in (("nothing_granted", ""), ("no_connection", "CONNECTION LIMIT 0")):
            connection.execute(f"DROP ROLE IF EXISTS {role}")
            connection.execute(f"CREATE ROLE {role} LOGIN {options}")
    yield postgres
    with administrator(postgres) as connection:
        connection.execute("DROP OWNED BY nothing_granted")


def refusal(url: str) -> str:
    with pytest.raises(StoreError) as caught:
        FeedbackStore(url, timeout=2)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.startswith("feedback store postgresql+psycopg://")
    return message


def test_each_way_to_be_refused_says_what_to_do(roles):
    name = roles.rsplit("/", 1)[1]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody_there = f"postgresql+psycopg://me:s3cret@127.0.0.1:{closed.getsockname()[1]}/lab"
        assert "cannot be reached" in (down := refusal(nobody_there)) and "check that the server runs" in down
        assert "s3cret" not in down and "me:***@" in down
    assert "does not exist on this server; create it first" in refusal(roles.replace(name, "no_such_database"))
    assert "refuses this user or password; check the URL" in refusal(as_user(roles, "no_such_role"))
    assert "has no connection left" in refusal(as_user(roles, "no_connection"))
    assert "may not be used by this user" in refusal(as_user(roles, "nothing_granted"))


def test_a_wrong_password_is_named_and_not_repeated(postgres_server, postgres):
    rules = postgres_server.data / "pg_hba.conf"
    open_to_all = rules.read_text()
    with administrator(postgres) as connection:
        connection.execute("DROP ROLE IF EXISTS teacher")
        connection.execute("CREATE ROLE teacher LOGIN PASSWORD 'right'")
        try:
            rules.write_text(f"host all teacher 127.0.0.1/32 scram-sha-256\n{open_to_all}")
            connection.execute("SELECT pg_reload_conf()")
            wrong = refusal(postgres.replace("postgres@", "teacher:wr0ng@"))
            assert "refuses this user or password" in wrong and "wr0ng" not in wrong
            assert "refuses this user or password" in refusal(as_user(postgres, "teacher"))
        finally:
            rules.write_text(open_to_all)
            connection.execute("SELECT pg_reload_conf()")


def test_a_user_who_may_only_read_reads_and_is_told_why_it_cannot_answer(roles):
    with FeedbackStore(roles) as store:
        store.add_question(question())
    with administrator(roles) as connection:
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO nothing_granted")
    with FeedbackStore(as_user(roles, "nothing_granted")) as reader:
        assert reader.questions() == [question()]
        with pytest.raises(StoreError, match="may not be used by this user .*grant it the rights"):
            reader.append(answer(question()))


def test_a_server_that_is_read_only_says_so(postgres):
    with FeedbackStore(postgres) as store:
        store.add_question(question())
    with FeedbackStore(f"{postgres}?options=-c%20default_transaction_read_only%3Don") as standby:
        assert standby.questions() == [question()]  # the options of one's own URL are kept
        with pytest.raises(StoreError, match="is read-only; connect to a server that may be written"):
            standby.append(answer(question()))


def test_no_connection_left_is_said_and_passes(postgres):
    with FeedbackStore(postgres) as store:
        store.add_question(question())
        store.database._engine.dispose()
        with administrator(postgres) as first:
            limit = int(first.execute("SHOW max_connections").fetchone()[0])
            others = []
            try:
                with pytest.raises(psycopg.OperationalError, match="too many clients|remaining connection slots"):
                    for _ in range(limit):
                        others.append(psycopg.connect(postgres.replace("+psycopg", "")))
                with pytest.raises(StoreError, match="has no connection left; close some, or raise max_connections"):
                    store.append(answer(question()))
            finally:
                for other in others:
                    other.close()
        assert patiently(store, answer(question())) == 1


def patiently(store: FeedbackStore, given) -> int:
    """Append `given`, again and again while the server says no: what a person does with "Send again"."""
    for _ in range(100):
        try:
            return store.append(given)
        except StoreError:
            threading.Event().wait(0.1)
    raise AssertionError("the server did not come back")


def test_a_writer_that_hangs_in_its_transaction_is_waited_for_and_then_named(postgres):
    with FeedbackStore(postgres, timeout=0.3) as store:
        store.add_question(question())
        with FeedbackStore(postgres) as other, other.database.begin(write=True):
            with pytest.raises(StoreError, match=r"is locked by another program \(waited 0.3 s\)"):
                store.append(answer(question()))
            assert store.rankings() == []  # reading needs no turn
        assert store.append(answer(question())) > 0


# --- servers of every make ---


def test_a_server_set_to_another_isolation_or_durability_is_used_as_the_store_needs_it(postgres):
    with administrator(postgres) as connection:
        name = connection.execute("SELECT current_database()").fetchone()[0]
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    given = answer(question())
    with FeedbackStore(postgres) as store:
        store.add_question(question())
        with store.database.begin(write=True) as connection:
            assert connection.scalar(sa.text("SHOW synchronous_commit")) == "on"
        numbers, gate = [], threading.Barrier(4)

        def send() -> None:
            with FeedbackStore(postgres) as mine:
                gate.wait()
                numbers.append(mine.append(given))

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert numbers == [store.last_seq] * 4 and len(store.events()) == 1


def test_a_database_without_an_encoding_keeps_every_character(postgres):
    with administrator(postgres) as connection:
        name = f"{postgres.rsplit('/', 1)[1]}_ascii"
        connection.execute(
            f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    with FeedbackStore(f"{postgres}_ascii") as store:
        store.add_question(question())
        store.append(given := answer(question(), "Zoë 名 😀"))
        assert store.answers("Zoë 名 😀") == [given]


# --- restarts, lost replies, a full disk ---


def test_the_first_call_after_the_server_was_killed_and_restarted_works(postgres_server, postgres):
    with FeedbackStore(postgres, timeout=2) as store:
        store.add_question(question())
        store.append(given := answer(question()))
        postgres_server.kill()
        try:
            with pytest.raises(StoreError, match="cannot be reached|shut down"):
                store.append(answer(question(), "you"))
        finally:
            postgres_server.start()
        assert store.append(given) == 1 and store.rankings() == [given]
        postgres_server.kill()
        postgres_server.start()  # and nobody called meanwhile: the store has yet to notice
        assert store.append(answer(question(), "you")) > 1


class Gate:
    """A wire to the server that can be cut just after a commit went through: its reply never arrives."""

    def __init__(self, port: int) -> None:
        self.server = ("127.0.0.1", port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.cut_after_commit = False
        self.committed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=[client], daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        server = socket.create_connection(self.server)
        back = threading.Thread(target=self._answer, args=[server, client], daemon=True)
        back.start()
        while sent := _receive(client):
            if self.cut_after_commit and b"COMMIT\0" in sent:
                self.cut_after_commit = False
                client.shutdown(socket.SHUT_RDWR)
                server.sendall(sent)
                back.join(5)  # its reply found nobody
                self.committed.set()
                break
            server.sendall(sent)
        for wire in (client, server):
            wire.close()

    @staticmethod
    def _answer(server: socket.socket, client: socket.socket) -> None:
        while got := _receive(server):
            try:
                client.sendall(got)
            except OSError:
                return


def _receive(wire: socket.socket) -> bytes:
    try:
        return wire.recv(65536)
    except OSError:
        return b""


def test_a_commit_whose_reply_was_lost_is_recognised_when_it_is_sent_again(postgres_server, postgres):
    gate, given = Gate(postgres_server.port), answer(question())
    with FeedbackStore(postgres.replace(f":{postgres_server.port}/", f":{gate.port}/"), timeout=3) as store:
        store.add_question(question())
        gate.cut_after_commit = True
        with pytest.raises(StoreError, match="cannot be reached"):
            store.append(given)
        assert gate.committed.wait(10)
        with FeedbackStore(postgres) as direct:
            assert direct.rankings() == [given]  # it was committed, and nobody knows
        assert store.append(given) == 1 and len(store.events()) == 1
    gate.listener.close()


def test_a_full_disk_refuses_the_answer_keeps_the_others_and_takes_it_when_there_is_space(monkeypatch):
    with small_disk(120) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        server = Server(find_programs())
        try:
            with FeedbackStore(server.new_database()) as store:
                store.add_question(question())
                ballast, kept = fill(disk, leave=100_000), []
                with pytest.raises(StoreError, match="because the server's disk is full; free some space there"):
                    for number in range(2, 200):
                        store.add_question(large := replace(question(number), prompt=os.urandom(4000).hex()))
                        kept.append(large)
                ballast.unlink()
                store.append_all([given := answer(large)], [large])
                assert store.questions() == [question(), *kept, large] and store.rankings() == [given]
        finally:
            server.stop()
