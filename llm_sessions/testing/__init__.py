"""A server to test against, for this library's tests and for yours. Needs the `testing` extra."""
