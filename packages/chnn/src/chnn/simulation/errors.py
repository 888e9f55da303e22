"""What keeps a system from the compiled path."""


class Untraceable(ValueError):
    """A function uses an operation that has no scalar form; the torch path computes it."""
