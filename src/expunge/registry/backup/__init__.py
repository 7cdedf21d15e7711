"""Backups of a running service, database and objects together, and their restoration.

A backup is consistent in itself: the rows of one moment, and the objects that they name.
"""

from expunge.registry.backup.archive import Archive, BackupRefused
from expunge.registry.backup.endings import Endings, note
from expunge.registry.backup.restoring import Mended, Restored, mend, restore
from expunge.registry.backup.taking import Taken, take

__all__ = [
    "Archive",
    "BackupRefused",
    "Endings",
    "Mended",
    "Restored",
    "Taken",
    "mend",
    "note",
    "restore",
    "take",
]
