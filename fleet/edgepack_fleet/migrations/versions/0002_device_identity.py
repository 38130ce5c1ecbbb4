"""Certificates, report keys and revocation of devices; which events were signed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TEXTS = (
    "certificate",
    "pending_certificate",
    "retired",
    "report_key",
    "enrol_token",
    "trusts",
)
TIMES = ("revoked", "fenced")


def upgrade() -> None:
    """Add the columns; what is not known of earlier devices is empty."""
    with op.batch_alter_table("devices") as table:
        for name in TEXTS:
            table.add_column(sa.Column(name, sa.Text(), nullable=False, server_default=""))
        for name in TIMES:
            table.add_column(sa.Column(name, sa.Double(), nullable=True))
    with op.batch_alter_table("events") as table:
        table.add_column(
            sa.Column("verified", sa.Boolean(), nullable=False, server_default=sa.false())
        )


def downgrade() -> None:
    """Drop the columns."""
    with op.batch_alter_table("events") as table:
        table.drop_column("verified")
    with op.batch_alter_table("devices") as table:
        for name in (*TEXTS, *TIMES):
            table.drop_column(name)
