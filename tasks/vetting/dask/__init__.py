"""Vettings on Dask workers: blocks of one detection on many hosts, each with workplaces of its own."""
