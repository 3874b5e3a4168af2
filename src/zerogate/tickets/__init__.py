"""Tickets: masks as values, and the search for them."""

from zerogate.tickets.mask import Held, Mask
from zerogate.tickets.search import TicketSearch
from zerogate.tickets.small import small_dense
from zerogate.tickets.stage import Stage

__all__ = ["Held", "Mask", "Stage", "TicketSearch", "small_dense"]
