"""Export: a checkpoint becomes an artifact."""
