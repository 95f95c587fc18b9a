"""Pure building blocks, each used unchanged by at least two parts of the toolkit."""
