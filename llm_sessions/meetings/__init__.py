"""Meetings: which data channels one should have, and what is said on them about captions."""
