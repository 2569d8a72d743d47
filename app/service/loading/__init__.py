"""Object files: loaded under a name, with their programs and arrays held as NAME.program and NAME.map.

`object_files` is the entrance. `specification` is what a request asks for, `version` what was loaded, `refusals` turns
the answers of the process that loads a file into errors, and `moves` plans the changes of entries.
"""
