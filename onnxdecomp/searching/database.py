"""A database whose signs of life may fail: only importable where Optuna is installed."""

from __future__ import annotations

import logging

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

_LOGGER = logging.getLogger("onnxdecomp")


class Database(RDBStorage):
    """Optuna's database, of which a heartbeat that cannot be written is tried again when the next is due.

    Optuna writes heartbeats in a thread, where an error could only be printed, and would end the thread:
    others would then take a process for dead because of one moment's fault. If the storage is gone for good,
    the search itself meets the same error at its next word to it, and tells it.
    """

    def record_heartbeat(self, trial_id: int) -> None:
        """Say that the trial is being worked at."""
        try:
            super().record_heartbeat(trial_id)
        except (SQLAlchemyError, StorageInternalError) as error:
            _LOGGER.info("trial %d: its heartbeat could not be written (%s)", trial_id, type(error).__name__)
            self.remove_session()
