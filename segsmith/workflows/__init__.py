"""What the public API and the commands run, from checks to results."""
