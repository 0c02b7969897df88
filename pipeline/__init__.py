"""Atelier's stages that need no torch: records, the store, ingest, releases and the command line."""

__version__ = "0.4.0"
