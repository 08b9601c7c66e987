-- recording/base.db
UPDATE steps SET backward_ns = NULL WHERE step > 3
