"""What is measured: a module for each kind of work, `measure(world, book, plan)` in each."""
