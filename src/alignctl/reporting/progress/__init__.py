"""What a person sees while something takes long."""
