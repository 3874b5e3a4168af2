"""Files of compacted networks."""
