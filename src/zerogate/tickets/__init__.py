"""Tickets: masks as values, and the search for them."""
