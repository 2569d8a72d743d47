"""One open program array or one open program, and how they are opened.

`source` says where an object comes from, `opening` opens or creates it, and `program_array` and `program` are the
objects. They translate the errnos of the kernel port into the errors of `app.service.errors`; everything above works
with those.
"""
