"""The tables that workers of one fleet share among themselves."""

from sqlalchemy.orm import Mapped, mapped_column

from edgepack_fleet.adapters.tables import Base, Id

__all__ = ["LeaseRow"]


class LeaseRow(Base):
    """What one worker does for all, as long as it says so again in time."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(Id, primary_key=True)
    holder: Mapped[str]
    """Empty: nobody, it was given back."""
    until: Mapped[float]
    """Unix seconds, by the clock of the database."""
