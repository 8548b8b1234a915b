"""Runs the command line under fire: processes killed by pid at random moments, and the ledger checked after each run."""
