"""The jump table in domain words: program arrays, programs, and the names they are held under."""
