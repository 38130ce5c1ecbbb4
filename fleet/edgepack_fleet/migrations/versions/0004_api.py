"""Tokens that expire, answers to give again, the audit log, changes to tell, webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the tables; tokens so far follow from the secret and come back at the next start."""
    op.execute("DELETE FROM api_tokens")
    with op.batch_alter_table("api_tokens") as table:
        table.add_column(sa.Column("id", sa.String(128), nullable=False))
        table.add_column(sa.Column("expires", sa.Double(), nullable=True))
        table.add_column(sa.Column("used", sa.Double(), nullable=True))
        table.create_unique_constraint("uq_api_tokens_id", ["id"])
    op.create_table(
        "answers",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("created", sa.Double(), nullable=False),
    )
    op.create_index("ix_answers_created", "answers", ["created"])
    op.create_table(
        "audit",
        sa.Column("id", ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("who", sa.String(128), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("address", "action", "path")),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
    )
    op.create_index("ix_audit_time", "audit", ["time"])
    op.create_index("ix_audit_who", "audit", ["who"])
    _create_what_is_told()


def downgrade() -> None:
    """Drop them."""
    for name in ("deliveries", "webhooks", "changes", "audit", "answers"):
        op.drop_table(name)
    with op.batch_alter_table("api_tokens") as table:
        table.drop_constraint("uq_api_tokens_id", type_="unique")
        for name in ("id", "expires", "used"):
            table.drop_column(name)


def _create_what_is_told() -> None:
    op.create_table(
        "changes",
        sa.Column("id", ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("types", sa.JSON(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("answered", sa.Double(), nullable=True),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("webhook_id", sa.String(128), sa.ForeignKey("webhooks.id"), nullable=False),
        sa.Column("event", sa.JSON(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("due", sa.Double(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("updated", sa.Double(), nullable=False),
    )
    op.create_index("ix_deliveries_state_due", "deliveries", ["state", "due"])
    op.create_index("ix_deliveries_webhook_id", "deliveries", ["webhook_id"])
