"""Loaders of inference engines, which find them by entry points; nothing of an engine is imported before it asks."""
