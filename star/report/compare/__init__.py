"""Runs of any results trees against each other, on a page and in the terminal."""
