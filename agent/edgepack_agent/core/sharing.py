"""How the agents of one box share its processor. Pure."""

__all__ = ["thread_share"]


def thread_share(cores: int, agents: int) -> int | None:
    """Return how many threads a model computes with; None: as many as its runtime likes.

    Threads of several models on the same cores wait for each other in the middle of a layer, so
    each gets its share of the cores, and at least one.

    Args:
        cores: That this process may use.
        agents: That are configured on this box, this one among them.
    """
    return None if agents < 2 else max(1, cores // agents)
