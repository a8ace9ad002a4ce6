"""The study: variants of the method over seeds, and the page that compares them."""
