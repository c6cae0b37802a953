"""Every exception of the package: one base, so that an error of the user is told apart from a bug."""


class StxError(Exception):
    """What a user can mend: the message says what was given, what was expected, what to do. The rest are bugs.

    It is one line, in which characters of names that a terminal would obey are escaped.
    """

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().__str__())


class InputError(StxError, ValueError):
    """A value that cannot be used; the message says what was expected."""


class FileError(StxError, OSError):
    """A file that cannot be written; the former one is kept."""


class TrainingError(StxError, RuntimeError):
    """Training cannot go on; the message names the step, the cause and what is kept."""


class WeightsError(StxError, RuntimeError):
    """Weights that are missing, damaged, unsafe or of another network; the message says which and what to do."""


class DomainError(StxError, ValueError):
    """An unknown domain, split or label file; the message says what is known."""


class ImageError(StxError, ValueError):
    """A picture that cannot be used; the message names the file and the remedy."""


class EditError(StxError, ValueError):
    """An attribute or a target that does not exist; the message lists those that do."""


class ExplorerError(StxError, ValueError):
    """A state that makes no sense here; the message says what was expected."""


class NotebookError(StxError, ValueError):
    """A notebook or a parameter that does not exist, with those that do; or a cell that failed."""
