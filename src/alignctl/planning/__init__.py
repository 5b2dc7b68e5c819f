"""What a job takes and how long it lasts, by arithmetic: no torch, no GPU."""
