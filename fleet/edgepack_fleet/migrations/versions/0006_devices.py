"""Tags, names and notes of devices; groups that are filters; who may join; connections."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add columns and tables; no device has a tag, and every group is a list of devices."""
    # Not in a batch: that would make the tables anew, and other tables refer to their rows.
    for table in ("devices", "enrol_tokens"):
        op.add_column(table, sa.Column("tags", sa.JSON(), nullable=False, server_default="{}"))
    for name in ("name", "notes"):
        op.add_column("devices", sa.Column(name, sa.Text(), nullable=False, server_default=""))
    op.add_column("enrol_tokens", sa.Column("approval_s", sa.Double(), nullable=True))
    op.add_column("groups", sa.Column("filter", sa.Text(), nullable=False, server_default=""))
    op.create_table(
        "group_members",
        sa.Column("group_id", sa.String(128), sa.ForeignKey("groups.id"), primary_key=True),
        sa.Column("device_id", sa.String(128), sa.ForeignKey("devices.id"), primary_key=True),
    )
    op.create_index("ix_group_members_device_id", "group_members", ["device_id"])
    _create_who_may_join()
    op.create_table(
        "connections",
        sa.Column("id", ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("device_id", sa.String(128), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
    )
    op.create_index("ix_connections_device_time", "connections", ["device_id", "time"])
    op.create_index("ix_connections_time", "connections", ["time"])


def downgrade() -> None:
    """Drop them; a group that was a filter is an empty one afterwards."""
    for table in ("connections", "expected", "applicants", "group_members"):
        op.drop_table(table)
    op.drop_column("groups", "filter")
    for name in ("tags", "approval_s"):
        op.drop_column("enrol_tokens", name)
    for name in ("tags", "name", "notes"):
        op.drop_column("devices", name)


def _create_who_may_join() -> None:
    op.create_table(
        "applicants",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("token_id", sa.String(128), sa.ForeignKey("enrol_tokens.id"), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("group_id", sa.String(128), sa.ForeignKey("groups.id"), nullable=False),
        sa.Column("inventory", sa.JSON(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("deadline", sa.Double(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("decided", sa.Double(), nullable=True),
    )
    for name in ("fingerprint", "state"):
        op.create_index(f"ix_applicants_{name}", "applicants", [name])
    op.create_table(
        "expected",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("device", sa.String(128), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("group_id", sa.String(128), sa.ForeignKey("groups.id"), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("used_by", sa.Text(), nullable=False),
    )
    for name in ("device", "fingerprint"):
        op.create_index(f"ix_expected_{name}", "expected", [name])
