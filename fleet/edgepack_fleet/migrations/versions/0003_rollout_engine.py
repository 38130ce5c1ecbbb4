"""Attempts, ways back, measurements and priorities of rollouts; decisions that can be replayed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

JOB_TEXTS = ("image",)
JOB_DOCUMENTS = ("terms", "before", "measured")


def upgrade() -> None:
    """Add the columns; what is not known of earlier jobs is empty."""
    # Not in a batch: that would make the tables anew, and other tables refer to their rows.
    op.add_column(
        "devices", sa.Column("override", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column(
        "devices", sa.Column("measured_job", sa.Text(), nullable=False, server_default="")
    )
    op.add_column(
        "rollouts", sa.Column("priority", sa.Integer(), nullable=False, server_default="0")
    )
    op.add_column("rollouts", sa.Column("waived", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column(
        "rollouts", sa.Column("approved_by", sa.Text(), nullable=False, server_default="")
    )
    _add_to_jobs()
    _create_decisions()


def _add_to_jobs() -> None:
    op.drop_index("ux_jobs_rollout_device", "jobs")
    op.add_column(
        "jobs", sa.Column("kind", sa.String(16), nullable=False, server_default="install")
    )
    op.add_column("jobs", sa.Column("attempt", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("jobs", sa.Column("started", sa.Double(), nullable=True))
    for name in JOB_TEXTS:
        op.add_column("jobs", sa.Column(name, sa.Text(), nullable=False, server_default=""))
    for name in JOB_DOCUMENTS:
        op.add_column("jobs", sa.Column(name, sa.JSON(), nullable=False, server_default="{}"))
    op.create_index("ux_jobs_attempt", "jobs", ["rollout_id", "device_id", "attempt"], unique=True)


def _create_decisions() -> None:
    row_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "decisions",
        sa.Column("id", row_id, autoincrement=True, nullable=False),
        sa.Column("rollout_id", sa.String(128), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("inputs", sa.LargeBinary(), nullable=False),
        sa.Column("actions", sa.JSON(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollouts.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_decisions_rollout_id"), "decisions", ["rollout_id"], unique=False)


def downgrade() -> None:
    """Drop what is new; of a device's jobs in a rollout the newest installation is kept.

    States that were not there before end as `cancelled`: the program before knows no way back.
    """
    op.drop_table("decisions")
    op.execute("DELETE FROM jobs WHERE kind = 'revert'")
    op.execute(
        "DELETE FROM jobs WHERE attempt < (SELECT MAX(other.attempt) FROM jobs AS other WHERE "
        "other.rollout_id = jobs.rollout_id AND other.device_id = jobs.device_id)"
    )
    op.execute(
        "UPDATE rollouts SET state = 'cancelled' WHERE state IN "
        "('draft', 'awaiting_approval', 'reverting', 'reverted')"
    )
    op.drop_index("ux_jobs_attempt", "jobs")
    for name in ("kind", "attempt", "started", *JOB_TEXTS, *JOB_DOCUMENTS):
        op.drop_column("jobs", name)
    op.create_index("ux_jobs_rollout_device", "jobs", ["rollout_id", "device_id"], unique=True)
    for name in ("priority", "waived", "approved_by"):
        op.drop_column("rollouts", name)
    for name in ("override", "measured_job"):
        op.drop_column("devices", name)
