"""The error of whoever may not come in: with a token, a link or a key that does not do."""

from edgepack.errors import UsageError

__all__ = ["RefusedError"]


class RefusedError(UsageError):
    """The caller is not let in; `reason` says why."""

    default_reason = "token_invalid"
