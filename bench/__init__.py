"""Measurements that anyone can repeat: one script per question, results beside them."""
