"""Answers over HTTP from bundles: seqapp and FastAPI."""
