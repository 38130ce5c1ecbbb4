"""Why a rollout turned back, kept beside where it stands."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    with op.batch_alter_table("rollouts") as table:
        table.add_column(sa.Column("stopped", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    """Take it away again."""
    with op.batch_alter_table("rollouts") as table:
        table.drop_column("stopped")
