"""A real coordinator; see tests/support."""

from tests.support.fixtures import clock as clock
from tests.support.fixtures import coordinator as coordinator
