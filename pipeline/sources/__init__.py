"""Which files there are: from what the user names to a sorted list of media."""
