"""The agent of a fleet, one on each node: it brings tables to what the fleet desires, and tells how they are.

It is a client of the node's own service and of the fleet's store, and nothing else. What the node's configuration does
not open to the fleet, the service refuses.
"""
