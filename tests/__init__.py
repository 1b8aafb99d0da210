"""A package, so that helpers are found as `tests.…` whatever other packages bring along."""
