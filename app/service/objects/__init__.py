"""One open program array or program, and how it is opened."""
