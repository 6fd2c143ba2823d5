"""Ranks from a goal: what every choice costs and loses, and which of them to take."""

# In order: `asking` refuses what cannot be meant, runs the original and surveys it; `weighing` times and
# probes the choices of every site; `hunt` chooses, times whole models and fits them;
# `trying` goes on by trials.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
