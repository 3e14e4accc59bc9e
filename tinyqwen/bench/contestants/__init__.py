"""Who can be measured: this project and its peers, each a module that answers the same two questions; see `task`."""
