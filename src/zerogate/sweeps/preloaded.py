"""What the server of processes imports once for all tasks of a sweep: the trainer, and which commit of the source it is."""

from zerogate.training import provenance, ticket_search

__all__ = ["ticket_search"]

provenance.commit()  # remembered with the source that was just loaded, which may change while the sweep goes on
