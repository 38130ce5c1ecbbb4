"""Why an alert has ended, where it is not that its value is back, and why a rollout turned back."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

COLUMNS = (("alerts", "reason"), ("rollouts", "stopped"))


def upgrade() -> None:
    """Add the columns; of what was before, nothing is known."""
    for table, name in COLUMNS:
        op.add_column(table, sa.Column(name, sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    """Drop them."""
    for table, name in COLUMNS:
        op.drop_column(table, name)
