"""The journal of a mount on local disk."""
