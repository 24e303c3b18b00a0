"""A maintainer's tools: they write the weights and the tables that come with the repository."""
