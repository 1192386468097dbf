"""Batch translation of exported comments: one command turns an export into a translated export.

``jobs.plan`` makes the files of a run, ``pipeline.Pipeline`` translates them on a ``backends.LocalBackend`` or a
``remote.RemoteBackend``. Nothing is imported here, so that commands which translate no files do not pay for it.
"""
