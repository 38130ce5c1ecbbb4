"""What the fleet asks of devices and sets on them: requests, settings, measurements."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "requests",
        sa.Column("id", sa.String(128), primary_key=True),
        _device(),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("args", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("reason", "message")),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("verified", sa.Boolean(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        *_doubles("created", "updated", "deadline", "took_s"),
    )
    op.create_index("ix_requests_device_status", "requests", ["device_id", "status"])
    op.create_index("ix_requests_status", "requests", ["status"])
    op.create_table(
        "settings",
        sa.Column("scope", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        *_doubles("updated"),
    )
    op.create_table(
        "device_settings",
        _device(primary_key=True),
        sa.Column("wanted", sa.JSON(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("version", "reported")),
        sa.Column("status", sa.String(16), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("reason", "message")),
        sa.Column("pinned", sa.JSON(), nullable=False),
        *_doubles("changed", "told"),
    )
    op.create_table(
        "measurements",
        sa.Column("id", ROW_ID, primary_key=True, autoincrement=True),
        _device(),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("release", "target", "digest")),
        *_doubles("received"),
        sa.Column("verified", sa.Boolean(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
    )
    op.create_index("ix_measurements_release_device", "measurements", ["release", "device_id"])


def downgrade() -> None:
    """Drop them."""
    for name in ("measurements", "device_settings", "settings", "requests"):
        op.drop_table(name)


def _device(*, primary_key: bool = False) -> "sa.Column[str]":
    device = sa.ForeignKey("devices.id")
    return sa.Column("device_id", sa.String(128), device, primary_key=primary_key, nullable=False)


def _doubles(*names: str) -> "list[sa.Column[float]]":
    return [sa.Column(name, sa.Double(), nullable=False) for name in names]
