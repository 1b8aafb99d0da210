"""The conversation in which a reviewer looks at a run and overrules the agents."""
