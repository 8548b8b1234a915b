"""Kill processes of the command line at random moments, and check the run directory after each run."""
