"""What `reclaim.py` measures, in processes of their own."""
