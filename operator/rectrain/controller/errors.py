"""What calls to the API server can end with, as the controller tells it apart."""


class ApiError(Exception):
    """A call that did not do what was asked; another attempt may. The message says which call and why."""


class NotFoundError(ApiError):
    """The object is not there."""


class AlreadyExistsError(ApiError):
    """An object of that name is there already."""


class ConflictError(ApiError):
    """The object is not the one that was meant any more: it has changed, or is another of the same name."""


class KindMissingError(ApiError):
    """The API server does not know the kind: its CRD is not installed."""


class RefusedError(ApiError):
    """The API server, a quota or an admission webhook does not allow it.

    Attributes:
        permanent: Whether the object itself is not valid, so that asking again is of no use.
    """

    def __init__(self, message: str, *, permanent: bool) -> None:
        """Hold what was said."""
        super().__init__(message)
        self.permanent = permanent
