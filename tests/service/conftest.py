"""A store and a world on it; see tests/support."""

from tests.support.fixtures import clock as clock
from tests.support.fixtures import store as store
from tests.support.fixtures import world as world
