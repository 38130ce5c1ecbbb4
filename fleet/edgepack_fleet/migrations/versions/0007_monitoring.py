"""What telemetry comes to, by device and by group; alerts."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables; what was reported before is not added up."""
    for kind in ("device", "group"):
        _create_rollups(f"{kind}_rollups", f"{kind}_id")
    _create_alerts()


def downgrade() -> None:
    """Drop them."""
    for name in ("notices", "alerts", "group_rollups", "device_rollups"):
        op.drop_table(name)


def _create_alerts() -> None:
    op.create_table(
        "alerts",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("rule", sa.Text(), nullable=False),
        *(sa.Column(name, sa.String(16), nullable=False) for name in ("severity", "state")),
        sa.Column("labels", sa.JSON(), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=False) for name in ("since", "seen", "silenced")),
        *(sa.Column(name, sa.Double(), nullable=True) for name in ("value", "told")),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("acknowledged", "said")),
    )
    row_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "notices",
        sa.Column("id", row_id, primary_key=True, autoincrement=True),
        sa.Column("channel", sa.String(16), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=False) for name in ("due", "created")),
    )


def _create_rollups(name: str, whose: str) -> None:
    op.create_table(
        name,
        sa.Column("span", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("start", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("bundle", sa.String(256), primary_key=True),
        sa.Column("digest", sa.String(128), primary_key=True),
        sa.Column(whose, sa.String(128), primary_key=True),
        *(
            sa.Column(column, sa.BigInteger(), nullable=False)
            for column in ("reports", "inferences", "errors", "throttled_s", "lost")
        ),
        *(
            sa.Column(column, sa.JSON(), nullable=False)
            for column in ("reasons", "classes", "features")
        ),
        *(sa.Column(column, sa.JSON(), nullable=True) for column in ("latency", "confidence")),
        *(sa.Column(column, sa.Double(), nullable=False) for column in ("rss_mb", "cpu_percent")),
        sa.Column("temperature_c", sa.Double(), nullable=True),
    )
    op.create_index(f"ix_{name}_bundle", name, ["bundle", "start"])
    op.create_index(f"ix_{name}_age", name, ["span", "start"])
