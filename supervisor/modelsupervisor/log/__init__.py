"""The log: lines of output, events, their forms, and what waits for a sink. Nothing here knows what a worker is."""
