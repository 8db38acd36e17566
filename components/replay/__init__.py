"""Trace replay: the real router and workers under recorded load, in virtual time or in the wall clock's."""
