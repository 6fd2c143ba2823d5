"""Ranks from a goal: what every choice costs and loses, and which of them to take."""
