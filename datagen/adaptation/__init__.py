"""Training of networks: the loop that all of them share, and the verbs that adapt a checkpoint to a user's pictures."""
