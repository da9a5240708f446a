"""One file a rewrite rule; ``table.py`` lists them."""
