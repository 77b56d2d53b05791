"""Integrations with other frameworks, each imported on demand."""
