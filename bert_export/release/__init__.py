"""Release: what an artifact promises, and where it is published."""
