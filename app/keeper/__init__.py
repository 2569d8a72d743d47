"""The keeper: a process that keeps the privileges, so that the process that speaks HTTP has none.

The listener (the process that speaks HTTP) starts the keeper and then gives up its own rights. From then on it asks the
keeper for everything that needs a capability or a file of root, and gets file descriptors back.

Who asks what, over which channel, and what is checked where:

- `client` runs in the listener, and asks. It checks nothing, as an attacker could bypass it.
- `kernel` is the kernel port on top of it: it works on open fds by itself and asks the keeper only to open, create, pin
  and unpin. `loader` loads object files by way of the keeper.
- `messages` has the protocol: one datagram per question and per answer over a socketpair, with at most one fd each.
- `process` runs in the keeper. It checks every question against the `KeeperConfig` that it got before it answered the
  first one, and passes on fds of program arrays and programs only.
- `paths` has the checks of paths in the keeper: it opens a path first, and then checks what it has opened.
"""
