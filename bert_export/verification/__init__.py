"""Verification: an artifact is proven before anyone can serve it."""
