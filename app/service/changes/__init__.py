"""Every change of entries: planned, checked, written, journalled, published."""
