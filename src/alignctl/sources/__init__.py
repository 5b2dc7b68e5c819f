"""Data sets as they are downloaded, to the rows that the stages read."""
