"""Every form of feedback (an answer may be about one reply), and what a class needs: people, a queue, notes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("events", sa.Column("target", sa.Text, nullable=False, server_default=""))
    op.create_index("events_of_annotator", "events", ["annotator", "seq"])
    op.create_index("events_of_question", "events", ["question_id", "annotator"])
    withdrawn, free = sa.text("withdraws IS NOT NULL"), sa.text("taken < overlap")
    op.create_index("events_withdrawn", "events", ["annotator"], sqlite_where=withdrawn, postgresql_where=withdrawn)
    op.create_table(
        "annotators",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("key_hash", sa.Text, nullable=False, unique=True),
        sa.Column("created", sa.Text, nullable=False),
    )
    op.create_table(
        "queue",
        sa.Column("question_id", sa.Text, sa.ForeignKey("questions.id"), primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("taken", sa.Integer, nullable=False),
        sa.Column("priority", sa.Float, nullable=False),
        sa.Column("expected", sa.JSON),
        sa.Column("created", sa.Text, nullable=False),
    )
    order = [sa.text("priority DESC"), sa.text("taken DESC"), "number"]
    op.create_index("queue_free", "queue", order, sqlite_where=free, postgresql_where=free)
    op.create_table(
        "assignments",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("question_id", sa.Text, sa.ForeignKey("queue.question_id"), nullable=False),
        sa.Column("annotator", sa.Text, nullable=False),
        sa.Column("assigned", sa.Float, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.UniqueConstraint("question_id", "annotator", name="one_assignment_each"),
        sqlite_autoincrement=True,
    )
    op.create_index("assignments_of_annotator", "assignments", ["annotator", "state"])
    op.create_index("assignments_open", "assignments", ["state", "expires"])
    op.create_table(
        "notes",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("created", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("notes_of_kind", "notes", ["kind", "number"])
