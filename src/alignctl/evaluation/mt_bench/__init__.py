"""MT-Bench: answers, a judge, judgments, a table."""
