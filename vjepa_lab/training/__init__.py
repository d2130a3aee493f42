"""Running a training: the loop, its processes, what it writes and how it survives."""
