"""What the fleet's server and its agents share: the keys in etcd, what they hold, and the client of etcd."""
