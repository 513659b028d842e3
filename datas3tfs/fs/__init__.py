"""The FUSE shell: translates between the kernel and engine/tree, engine/reader. Decides nothing."""
