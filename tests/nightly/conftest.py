"""Fixtures that the large tests share with those of the operations."""

from tests.ops.conftest import threads  # noqa: F401
