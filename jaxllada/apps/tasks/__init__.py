"""Tasks of lm_eval with data from the Hub, a folder or the user, and what goes wrong with them."""
