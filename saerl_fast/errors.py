"""Every error this package raises on purpose.

A message says what was wanted, what came, and what to do. Each class also inherits the built-in
that a caller would expect (``ValueError`` for a bad argument and so on), so ordinary handlers work.
"""


class SaerlError(Exception):
    """Base of all errors raised by saerl_fast."""


class InputError(SaerlError, ValueError):
    """An argument is out of range, empty, of the wrong length, or contradicts another."""


class ShapeError(InputError):
    """A tensor or array has the wrong shape."""


class DtypeError(SaerlError, TypeError):
    """A tensor, array or value has the wrong type."""


class NonFiniteError(InputError):
    """NaN or infinity where finite numbers are needed."""


class BackendUnavailable(SaerlError, RuntimeError):
    """The backend asked for cannot run this call; the message lists the reason for each one tried."""


class DeviceMemoryError(SaerlError, RuntimeError):
    """A single text does not fit into the memory of the device; the message gives sizes and what to change."""


class CapacityError(SaerlError, RuntimeError):
    """Sparse rows did not fit the room they were given without waiting for the device; the message says how many."""


class MissingDependency(SaerlError, ImportError):
    """An optional package is needed for this call; the message says how to install it."""


class FormatError(SaerlError, ValueError):
    """A file is of a known kind, but its content is wrong or not supported."""


class VersionError(FormatError):
    """Written in a version of a format of ours that this release does not read; the message says what to do."""


class UnsafeFileError(FormatError):
    """A file is refused before anything is read into memory: pickle, hostile header, cap exceeded."""


class ModelMismatchError(InputError):
    """Model, layer and SAE do not fit together (width, layer count, hook)."""


class StoreError(SaerlError):
    """Base of the errors of a feature folder."""


class StoreBusyError(StoreError):
    """Another process is writing the folder."""


class JobMismatchError(StoreError):
    """The folder belongs to a different job; the message names the keys that differ."""


class IncompleteStoreError(StoreError):
    """The folder has no DONE mark; the message says which rows are missing."""


class CorruptStoreError(StoreError):
    """Stored bytes do not match their checksum."""


class DiskFullError(StoreError, OSError):
    """The disk is full; committed shards are intact."""


class PlaceError(StoreError, OSError):
    """Nothing can be written at a place: a file where a folder is wanted, no permission, a read-only file system."""


class PlanError(SaerlError, ValueError):
    """A batch plan is inconsistent, or does not belong to this dataset."""


class TrainerMismatchError(PlanError):
    """The trainer's settings would not keep the plan's order."""


class VerifierError(SaerlError, RuntimeError):
    """A verifier raised, or returned no finite number; the message names the row and the completion."""


class MismatchWarning(UserWarning):
    """Model and SAE were not made for each other; the run goes on."""
