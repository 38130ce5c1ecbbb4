"""Why an alert has ended, where it is not that its value is back."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of those that ended before, nothing is known."""
    op.add_column("alerts", sa.Column("reason", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("alerts", "reason")
