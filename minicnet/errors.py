"""The one kind of error that a user can mend."""


class UserError(ValueError):
    """Report a mistake that a user can mend, in one sentence: what is wrong, and what to do."""
