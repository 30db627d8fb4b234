"""Coordinator, client and database of a service, as the outbox's tests have them."""

from __future__ import annotations

from tests.outbox.conftest import client, coordinator, file, folder, no_environment

__all__ = ["client", "coordinator", "file", "folder", "no_environment"]
