"""What a process uses to give up rights, and to talk to a process that has kept some.

The listener and the keeper share it: `capabilities` changes the user and drops capabilities, `seccomp` restricts system
calls, `channel` sends datagrams with file descriptors, and `abilities` asks the kernel what it can.
"""
