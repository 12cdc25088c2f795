"""Many runs of one config: grids and searches, their table and their page."""
