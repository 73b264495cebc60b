"""What stands behind the verb `eval`: jobs, requests and kept answers, parts, results."""
