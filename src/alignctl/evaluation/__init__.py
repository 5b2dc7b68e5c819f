"""What a model says when it is asked, and how good that is: answers, judgements, tables."""
