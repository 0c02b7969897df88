"""The errors that people see.

    AtelierError            a failure: exit status 1
    |- StoreError           object storage did not do what was asked
    |  |- NotFound          no object at that key
    |  |- AlreadyExists     `create` met an object that is already there
    |  `- Changed           `replace` met an object that somebody else wrote meanwhile
    |- IntegrityError       bytes do not match the size or SHA-256 that their record states
    |- TrainingError        a run that cannot go on: a loss that is not finite, workers that keep dying
    |- Stopped              a signal ended a run after its checkpoint: exit status 143 (SIGTERM)
    |  `- Interrupted       the same: exit status 130 (SIGINT)
    |- StackError           an embedded server (store, Ray, Airflow) did not start or did not answer
    `- UserError            the user's mistake: exit status 2
       |- RecipeError       a field of a recipe is wrong
       |- SourceError       the images cannot be read as asked
       |- RecordError       a URI names no record, or one that this version cannot read
       `- StoreRefused      wrong key, no such bucket, no such host

Every message is one line: what was expected, what came, what to do next. Errors take one string, so that they survive
pickling between Ray processes.
"""


class AtelierError(Exception):
    """A failure that is not the user's mistake."""

    exit_status = 1


class StoreError(AtelierError):
    """Object storage did not do what was asked."""


class NotFound(StoreError):  # noqa: N818 - reads as a state at the call site: `except NotFound`
    """There is no object at that key."""


class AlreadyExists(StoreError):  # noqa: N818 - as NotFound
    """`create` met an object that is already there."""


class Changed(StoreError):  # noqa: N818 - as NotFound
    """`replace` met an object that somebody else wrote meanwhile."""


class IntegrityError(AtelierError):
    """Bytes do not match the size or SHA-256 that their record states."""


class TrainingError(AtelierError):
    """A run that cannot go on."""


class Stopped(AtelierError):  # noqa: N818 - nothing went wrong
    """SIGTERM ended a run, which goes on where it was when it is started again."""

    exit_status = 143


class Interrupted(Stopped):
    """SIGINT did."""

    exit_status = 130


class StackError(AtelierError):
    """An embedded server did not start or did not answer."""


class UserError(AtelierError):
    """The user's mistake: the message says what was expected, what came and what to do next."""

    exit_status = 2


class RecipeError(UserError):
    """A field of a recipe is wrong."""


class SourceError(UserError):
    """The images cannot be read as asked."""


class RecordError(UserError):
    """A URI names no record, or one that this version cannot read."""


class StoreRefused(UserError):  # noqa: N818 - as NotFound
    """Object storage refused the caller: wrong key, no such bucket, no such host."""


class ProtocolMismatch(UserError):  # noqa: N818 - as NotFound
    """Figures that were measured in different ways were to be compared."""
